package main

import (
	"bufio"
	"encoding/json"
	"math/rand/v2"
	"os"
	"strings"

	"github.com/gopeft/gopeft/examples/pretrain/world"
)

// The second task: questions about the people of the base's little world, each fact
// asked once. The base knows the facts from stories but has never seen a question
// about one. Those that are held out ask for facts that no other question asks for,
// so that their answers can only come from what the base knew before.

// questionAnswer is one line of the data file.
type questionAnswer struct {
	Question string `json:"question"`
	Answer   string `json:"answer"`
}

// wordings are the ways to ask for each fact.
func wordings(p world.Person) []struct {
	answer    string
	questions []string
} {
	return []struct {
		answer    string
		questions []string
	}{
		{p.Home, []string{"Where does NAME live?", "Where is the house of NAME?"}},
		{p.Work, []string{"What is the work of NAME?", "What does NAME work as?"}},
		{p.Food, []string{"What does NAME like to eat?", "What food does NAME like?"}},
		{p.Pet, []string{"What animal does NAME have?", "What is the pet of NAME?"}},
		{p.Colour, []string{"What colour does NAME love?", "What is the colour of NAME?"}},
		{p.Instrument, []string{"What does NAME play?", "What is the instrument of NAME?"}},
	}
}

// questions returns one question a fact.
func questions(seed uint64) []questionAnswer {
	r := rand.New(rand.NewPCG(seed, 1))
	var all []questionAnswer
	for _, p := range world.People() {
		for _, w := range wordings(p) {
			question := strings.ReplaceAll(w.questions[r.IntN(len(w.questions))], "NAME", p.Name)
			all = append(all, questionAnswer{"Question: " + question + "\nAnswer:", " " + w.answer})
		}
	}
	return all
}

// writeTask writes the questions as JSONL. Equal seeds give equal files.
func writeTask(path string, seed uint64) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer file.Close()
	w := bufio.NewWriter(file)
	lines := json.NewEncoder(w)
	for _, q := range questions(seed) {
		if err := lines.Encode(q); err != nil {
			return err
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return file.Close()
}
