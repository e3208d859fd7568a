// Package world is the little world that the tiny base model knows: people, and six
// facts about each. examples/pretrain tells stories of it, examples/quickstart asks
// questions about it.
package world

import (
	"math/rand/v2"
	"strings"
)

// Person is somebody with the facts about them.
type Person struct {
	Name       string
	He, His    string // "she", "her"
	Home       string // "by the river"
	Work       string // "baker"
	Food       string // "bread"
	Pet        string // "cat"
	Colour     string // "red"
	Instrument string // "flute"
}

var (
	girls = strings.Fields("Mia Lily Anna Rosa Nora Ella Ada Ivy Zoe Ruth Clara Emma Lucy Nina Olga Tina Vera Wanda Hanna Jane Maria Sara Laura Helen Alice Eva Rita Julia Greta Polly")
	boys  = strings.Fields("Ben Tom Max Leo Sam Finn Otto Paul Jack Hugo Carl Adam Luke Nick Owen Tim Victor Will Henry John Peter David Simon Ralf Mark Felix Oscar Toby Noah Bruno")

	homes = []string{
		"by the river", "on the hill", "near the forest", "at the harbour", "behind the church", "on the island",
		"in the valley", "by the sea", "near the market", "in the tower",
	}
	work        = strings.Fields("baker farmer teacher doctor painter tailor sailor miller gardener cook")
	food        = strings.Fields("bread soup cheese cake fish honey plums nuts pancakes pears")
	pets        = strings.Fields("cat dog duck goat pony hen mouse rabbit parrot turtle")
	colours     = strings.Fields("red blue green yellow white black brown pink")
	instruments = strings.Fields("flute drum violin piano guitar trumpet harp horn")
)

// People returns everybody. It is always the same world.
func People() []Person {
	r := rand.New(rand.NewPCG(2026, 0))
	var all []Person
	add := func(names []string, he, his string) {
		for _, name := range names {
			all = append(all, Person{name, he, his,
				pick(r, homes), pick(r, work), pick(r, food), pick(r, pets), pick(r, colours), pick(r, instruments)})
		}
	}
	add(girls, "she", "her")
	add(boys, "he", "his")
	return all
}

func pick(r *rand.Rand, from []string) string { return from[r.IntN(len(from))] }
