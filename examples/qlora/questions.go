package main

import (
	"encoding/json"
	"errors"
	"os"

	"github.com/gopeft/gopeft/examples/pretrain/world"
)

// writeQuestions writes one question a line about the people of the little world that the
// tiny base knows from stories.
func writeQuestions(path string) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	encoder := json.NewEncoder(file)
	for _, p := range world.People() {
		for _, fact := range [][2]string{
			{"Where does " + p.Name + " live?", p.Home},
			{"What is the work of " + p.Name + "?", p.Work},
			{"What animal does " + p.Name + " have?", p.Pet},
			{"What does " + p.Name + " play?", p.Instrument},
		} {
			err = errors.Join(err, encoder.Encode(struct {
				Prompt     string `json:"prompt"`
				Completion string `json:"completion"`
			}{"Question: " + fact[0] + "\nAnswer:", " " + fact[1]}))
		}
	}
	return errors.Join(err, file.Close())
}
