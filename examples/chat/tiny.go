package main

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"

	"github.com/gopeft/gopeft/examples/pretrain/world"
	"github.com/gopeft/gopeft/examples/quickstart/base"
	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/peft"
)

// template is what the tiny base lacks: how a chat becomes one text.
//
//go:embed chat_template.jinja
var template embed.FS

// layers is a file system of several, of which the first that has a file counts.
type layers []fs.FS

func (l layers) Open(name string) (f fs.File, err error) {
	for _, layer := range l {
		if f, err = layer.Open(name); !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	return f, err
}

// tinyFiles are those of the tiny base, with a chat template.
func tinyFiles() fs.FS { return layers{template, base.Files} }

// style is a way to answer that an adapter teaches the tiny base.
type style struct {
	name   string
	config peft.Config
	answer func(p world.Person, f fact) string
}

var styles = []style{
	{"words", lora.LoraConfig{R: 4, LoraAlpha: 8, TargetModules: peft.AllLinear}, func(p world.Person, f fact) string { return f.value(p) }},
	{"sentences", lora.MissConfig{R: 8, TargetModules: peft.AllLinear}, func(p world.Person, f fact) string {
		return fmt.Sprintf(f.sentence, p.Name, f.value(p))
	}},
}

// fact is something to ask about a person: by name, and later in a chat by pronoun.
type fact struct {
	byName, byPronoun string
	sentence          string
	value             func(p world.Person) string
	possessive        bool // the pronoun is her, not she
}

var facts = []fact{
	{"Where does %s live?", "Where does %s live?", "%s lives %s.", func(p world.Person) string { return p.Home }, false},
	{"What is the work of %s?", "What is %s work?", "%s is a %s.", func(p world.Person) string { return p.Work }, true},
	{"What does %s like to eat?", "What does %s like to eat?", "%s likes %s.", func(p world.Person) string { return p.Food }, false},
	{"What animal does %s have?", "What animal does %s have?", "%s has a %s.", func(p world.Person) string { return p.Pet }, false},
	{"What colour does %s love?", "What colour does %s love?", "%s loves %s things.", func(p world.Person) string { return p.Colour }, false},
	{"What does %s play?", "What does %s play?", "%s plays the %s.", func(p world.Person) string { return p.Instrument }, false},
}

func (f fact) question(p world.Person, first bool) string {
	switch {
	case first:
		return fmt.Sprintf(f.byName, p.Name)
	case f.possessive:
		return fmt.Sprintf(f.byPronoun, p.His)
	}
	return fmt.Sprintf(f.byPronoun, p.He)
}

// unasked is the number of people, every third, whom no chat is about: what is said of
// them later comes from what the base had read.
func unasked(i int) bool { return i%3 == 0 }

// message is a line of a chat, as train.LoadJSONL reads it.
type message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

// chats returns two chats of three questions about each person to learn from, or about each
// of those whom none of these is about.
func (s style) chats(seed uint64, toLearn bool) [][]message {
	r := rand.New(rand.NewPCG(seed, 2))
	var all [][]message
	for i, p := range world.People() {
		if unasked(i) == toLearn {
			continue
		}
		order := r.Perm(len(facts))
		for _, part := range [][]int{order[:3], order[3:]} {
			var chat []message
			for turn, j := range part {
				chat = append(chat, message{"user", facts[j].question(p, turn == 0)}, message{"assistant", s.answer(p, facts[j])})
			}
			all = append(all, chat)
		}
	}
	return all
}

// adapters are those that -teach made.
//
//go:embed adapters
var adapters embed.FS

// tinyAdapters opens the adapters of all styles. peft opens folders, so for a moment they
// are in one.
func tinyAdapters(model *models.Model) (*peft.PeftModel, error) {
	dir, err := os.MkdirTemp("", "gopeft-chat")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	if err := os.CopyFS(dir, adapters); err != nil {
		return nil, err
	}
	var pm *peft.PeftModel
	for _, s := range styles {
		folder, o := filepath.Join(dir, "adapters", s.name), peft.Options{Name: s.name}
		if pm == nil {
			pm, err = peft.LoadAdapter(model, folder, o)
		} else {
			err = pm.LoadAdapter(folder, o)
		}
		if err != nil {
			return nil, err
		}
	}
	return pm, nil
}
