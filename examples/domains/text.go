package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/gopeft/gopeft/examples/pretrain/world"
)

// The base knows 60 people from stories. The two domains tell the same facts in ways that
// it has never seen: letters, in the first person, and telegrams. What it learns of them from
// some people it must carry over to the others.

// opening begins the texts of both domains, so that only the adapter says which it is.
func opening(p world.Person) string { return "This is " + p.Name + "." }

// letter is a text of the first domain.
func letter(p world.Person) string {
	return fmt.Sprintf("%s \"I live %s. I am a %s. I like %s. I have a %s. I love %s things. I play the %s.\"",
		opening(p), p.Home, p.Work, p.Food, p.Pet, p.Colour, p.Instrument)
}

// telegram is a text of the second.
func telegram(p world.Person) string {
	return fmt.Sprintf("%s lives %s, works as %s, likes %s, has %s, loves %s, plays %s, stop",
		opening(p), p.Home, p.Work, p.Food, p.Pet, p.Colour, p.Instrument)
}

// example is a line of a data file: a text, or a prompt and its completion.
type example struct {
	Text       string `json:"text,omitempty"`
	Prompt     string `json:"prompt,omitempty"`
	Completion string `json:"completion,omitempty"`
}

// held reports whether a person is one of those, every third, whom nothing is learned of.
func held(i int) bool { return i%3 == 0 }

// texts are the examples of a domain, one a person.
func texts(domain func(world.Person) string, wantHeld bool) []example {
	var all []example
	for i, p := range world.People() {
		if held(i) == wantHeld {
			all = append(all, example{Text: domain(p)})
		}
	}
	return all
}

// questions are examples of the task: somebody is asked, and answers as in a letter.
func questions(wantHeld bool) []example {
	var all []example
	for i, p := range world.People() {
		if held(i) != wantHeld {
			continue
		}
		for _, q := range [][2]string{
			{"Where do you live?", "I live " + p.Home + "."}, {"What is your work?", "I am a " + p.Work + "."},
			{"What do you like to eat?", "I like " + p.Food + "."}, {"What animal do you have?", "I have a " + p.Pet + "."},
			{"What colour do you love?", "I love " + p.Colour + " things."}, {"What do you play?", "I play the " + p.Instrument + "."},
		} {
			all = append(all, example{Prompt: fmt.Sprintf("%s \"%s\"", opening(p), q[0]), Completion: fmt.Sprintf(" \"%s\"", q[1])})
		}
	}
	return all
}

func write(path string, examples []example) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	encoder := json.NewEncoder(file)
	for _, e := range examples {
		err = errors.Join(err, encoder.Encode(e))
	}
	return errors.Join(err, file.Close())
}
