package models

import (
	"fmt"
	"slices"
)

// row is one prompt and what is generated after it.
type row struct {
	number int // in the call
	prompt []int32
	room   int // how many tokens may follow
	out    Generation
	text   *rowText // nil without a tokenizer
	seen   []int32  // distinct ids, kept for the repetition penalty only
	known  map[int32]bool
}

func newRow(s *settings, number int, prompt []int32) (*row, error) {
	room, err := s.room(prompt)
	if err != nil {
		return nil, err
	}
	r := &row{number: number, prompt: prompt, room: room, text: newRowText(s, prompt)}
	if s.RepetitionPenalty != 1 {
		r.known = map[int32]bool{}
		for _, id := range prompt {
			r.see(id)
		}
	}
	return r, nil
}

func (r *row) see(id int32) {
	if r.known != nil && !r.known[id] {
		r.known[id] = true
		r.seen = append(r.seen, id)
	}
}

func (r *row) done() bool { return r.out.FinishReason != "" }

// accept takes the row's next id and sends the text that it settles.
func (r *row) accept(s *settings, id int32) error {
	r.out.IDs = append(r.out.IDs, id)
	r.see(id)
	stop := s.stopsAt(id)
	if r.text != nil && (!stop || s.KeepSpecialTokens) {
		r.text.add(id)
	}
	switch {
	case stop:
		r.out.FinishReason = FinishStopToken
	case r.text != nil && r.text.stopped:
		r.out.FinishReason = FinishStopString
	case len(r.out.IDs) == r.room:
		r.out.FinishReason = FinishLength
	}
	if r.text == nil {
		return nil
	}
	if r.done() {
		r.text.finish()
		r.out.Text = r.text.text.String()
	}
	if s.Stream == nil {
		return nil
	}
	if piece := r.text.take(r.done()); piece != "" {
		if err := s.Stream(r.number, piece); err != nil {
			return fmt.Errorf("stream: %w", err)
		}
	}
	return nil
}

func allDone(rows []*row) bool {
	return !slices.ContainsFunc(rows, func(r *row) bool { return !r.done() })
}
