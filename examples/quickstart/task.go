package main

import (
	"bufio"
	"encoding/json"
	"math/rand/v2"
	"os"
	"strings"
)

// The second task: questions about a short scene, to be answered with words of it. The
// base was trained on stories and has never seen this form; examples/pretrain has
// the grammar of those.

var (
	people  = []string{"Mia", "Lily", "Anna", "Rosa", "Nora", "Ella", "Ben", "Tom", "Max", "Leo", "Sam", "Otto"}
	things  = []string{"ball", "kite", "book", "lamp", "key", "hat", "cup", "drum", "boat", "bell", "doll", "map", "ring", "stone"}
	colours = []string{"red", "blue", "green", "yellow", "white", "black", "old", "new"}
	places  = []string{
		"in the box", "in the basket", "in the bag", "under the bed", "under the table", "behind the door",
		"behind the tree", "on the shelf", "on the chair", "beside the well", "beside the gate",
	}
)

// questionAnswer is one line of the data file.
type questionAnswer struct {
	Question string `json:"question"`
	Answer   string `json:"answer"`
}

// question draws a scene of three things and asks for one of them.
func question(r *rand.Rand) questionAnswer {
	who, what, where := r.Perm(len(people)), r.Perm(len(things)), r.Perm(len(places))
	var scene strings.Builder
	asked := r.IntN(3)
	var qa questionAnswer
	for i := range 3 {
		name, thing, place := people[who[i]], things[what[i]], places[where[i]]
		colour := colours[r.IntN(len(colours))]
		scene.WriteString(name + " put the " + colour + " " + thing + " " + place + ". ")
		if i != asked {
			continue
		}
		qa = []questionAnswer{
			{"Where is the " + thing + "?", place},
			{"Who has the " + thing + "?", name},
			{"What is " + place + "?", "the " + colour + " " + thing},
			{"What colour is the " + thing + "?", colour},
		}[r.IntN(4)]
	}
	return questionAnswer{
		Question: strings.TrimSpace(scene.String()) + "\nQ: " + qa.Question + "\nA:",
		Answer:   " " + qa.Answer,
	}
}

// writeTask writes n questions as JSONL. Equal seeds give equal files.
func writeTask(path string, n int, seed uint64) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer file.Close()
	r, w := rand.New(rand.NewPCG(seed, 1)), bufio.NewWriter(file)
	lines := json.NewEncoder(w)
	for range n {
		if err := lines.Encode(question(r)); err != nil {
			return err
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return file.Close()
}
