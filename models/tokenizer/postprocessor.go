package tokenizer

import (
	"encoding/json"
	"errors"
	"fmt"
)

// postProcessor puts one or two encoded sequences together.
type postProcessor interface {
	process(parts []Encoding, addSpecial bool) Encoding
}

// postProcessorConfig has the fields of all types.
type postProcessorConfig struct {
	Processors    []json.RawMessage       `json:"processors"`
	Single        []templatePiece         `json:"single"`
	Pair          []templatePiece         `json:"pair"`
	SpecialTokens map[string]specialToken `json:"special_tokens"`
	Sep           *tokenAndID             `json:"sep"`
	Cls           *tokenAndID             `json:"cls"`
}

// tokenAndID is written as ["[SEP]", 102].
type tokenAndID struct{ id int32 }

func (t *tokenAndID) UnmarshalJSON(data []byte) error {
	var parts []json.RawMessage
	if err := json.Unmarshal(data, &parts); err != nil {
		return err
	}
	if len(parts) != 2 {
		return fmt.Errorf("a token with its id has %d parts, wanted 2", len(parts))
	}
	if err := json.Unmarshal(parts[1], &t.id); err != nil {
		return err
	}
	if t.id < 0 {
		return fmt.Errorf("id %d is negative", t.id)
	}
	return nil
}

// specialToken is what a template's name stands for.
type specialToken struct {
	IDs []int32 `json:"ids"`
}

// templatePiece is one of its two fields.
type templatePiece struct {
	Sequence *struct {
		ID     string `json:"id"`
		TypeID int32  `json:"type_id"`
	}
	SpecialToken *struct {
		ID     string `json:"id"`
		TypeID int32  `json:"type_id"`
	}
}

func parsePostProcessor(raw json.RawMessage, depth int) (postProcessor, error) {
	if isNull(raw) {
		return plain{}, nil
	}
	kind, err := componentType(raw, depth)
	if err != nil {
		return nil, err
	}
	var c postProcessorConfig
	if err := json.Unmarshal(raw, &c); err != nil {
		return nil, fmt.Errorf("%s: %w", kind, err)
	}
	p, err := newPostProcessor(kind, &c, depth)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", kind, err)
	}
	return p, nil
}

func newPostProcessor(kind string, c *postProcessorConfig, depth int) (postProcessor, error) {
	switch kind {
	case "ByteLevel": // changes offsets only
		return plain{}, nil
	case "Sequence":
		return sequencePostProcessor(c, depth)
	case "TemplateProcessing":
		return newTemplate(c)
	case "BertProcessing", "RobertaProcessing":
		if c.Sep == nil || c.Cls == nil {
			return nil, errors.New("no sep or no cls")
		}
		if kind == "BertProcessing" {
			return bertProcessing{c.Cls.id, c.Sep.id}, nil
		}
		return robertaProcessing{c.Cls.id, c.Sep.id}, nil
	}
	return nil, errors.New("this type is not supported")
}

// sequencePostProcessor allows one member that changes ids: a second would have
// to see the special tokens of the first as sequences of their own.
func sequencePostProcessor(c *postProcessorConfig, depth int) (postProcessor, error) {
	var found postProcessor = plain{}
	for _, raw := range c.Processors {
		p, err := parsePostProcessor(raw, depth+1)
		if err != nil {
			return nil, err
		}
		if _, nothing := p.(plain); nothing {
			continue
		}
		if _, first := found.(plain); !first {
			return nil, errors.New("more than one member that adds tokens is not supported")
		}
		found = p
	}
	return found, nil
}

// plain joins the sequences.
type plain struct{}

func (plain) process(parts []Encoding, _ bool) Encoding {
	if len(parts) == 1 {
		return parts[0]
	}
	var e Encoding
	for _, p := range parts {
		e.IDs = append(e.IDs, p.IDs...)
		e.TypeIDs = append(e.TypeIDs, p.TypeIDs...)
	}
	return e
}

// template is TemplateProcessing with its names resolved.
type template struct{ single, pair []piece }

// piece is a sequence (0 or 1) or, if sequence is -1, special tokens.
type piece struct {
	sequence int
	ids      []int32
	typeID   int32
}

func newTemplate(c *postProcessorConfig) (*template, error) {
	single, err := resolve(c.Single, c.SpecialTokens, 1)
	if err != nil {
		return nil, fmt.Errorf("single: %w", err)
	}
	pair, err := resolve(c.Pair, c.SpecialTokens, 2)
	if err != nil {
		return nil, fmt.Errorf("pair: %w", err)
	}
	return &template{single, pair}, nil
}

func resolve(pieces []templatePiece, special map[string]specialToken, sequences int) ([]piece, error) {
	var out []piece
	for i, p := range pieces {
		switch {
		case p.Sequence != nil && p.Sequence.ID == "A":
			out = append(out, piece{sequence: 0, typeID: p.Sequence.TypeID})
		case p.Sequence != nil && p.Sequence.ID == "B" && sequences == 2:
			out = append(out, piece{sequence: 1, typeID: p.Sequence.TypeID})
		case p.Sequence != nil:
			return nil, fmt.Errorf("piece %d is sequence %q, which this template does not have", i, p.Sequence.ID)
		case p.SpecialToken != nil:
			token, ok := special[p.SpecialToken.ID]
			if !ok {
				return nil, fmt.Errorf("piece %d: %q is not in special_tokens", i, p.SpecialToken.ID)
			}
			for _, id := range token.IDs {
				if id < 0 {
					return nil, fmt.Errorf("special token %q has the negative id %d", p.SpecialToken.ID, id)
				}
			}
			out = append(out, piece{sequence: -1, ids: token.IDs, typeID: p.SpecialToken.TypeID})
		default:
			return nil, fmt.Errorf("piece %d is neither Sequence nor SpecialToken", i)
		}
	}
	return out, nil
}

func (t *template) process(parts []Encoding, addSpecial bool) Encoding {
	pieces := t.single
	if len(parts) == 2 {
		pieces = t.pair
	}
	if len(parts) == 1 && !addSpecial && len(pieces) == 1 {
		return parts[0]
	}
	var e Encoding
	for _, p := range pieces {
		if p.sequence >= 0 {
			e.add(p.typeID, parts[p.sequence].IDs...)
		} else if addSpecial {
			e.add(p.typeID, p.ids...)
		}
	}
	return e
}

func (e *Encoding) add(typeID int32, ids ...int32) {
	e.IDs = append(e.IDs, ids...)
	e.TypeIDs = append(e.TypeIDs, filled(len(ids), typeID)...)
}

// bertProcessing is [CLS] A [SEP] and [CLS] A [SEP] B [SEP].
type bertProcessing struct{ cls, sep int32 }

func (p bertProcessing) process(parts []Encoding, addSpecial bool) Encoding {
	if !addSpecial {
		return plain{}.process(parts, false)
	}
	var e Encoding
	e.add(0, p.cls)
	for i, part := range parts {
		e.add(int32(i), part.IDs...)
		e.add(int32(i), p.sep)
	}
	return e
}

// robertaProcessing is <s> A </s> and <s> A </s></s> B </s>, all of type 0.
type robertaProcessing struct{ cls, sep int32 }

func (p robertaProcessing) process(parts []Encoding, addSpecial bool) Encoding {
	var e Encoding
	for i, part := range parts {
		switch {
		case addSpecial && i == 0:
			e.add(0, p.cls)
		case addSpecial:
			e.add(0, p.sep)
		}
		e.add(0, part.IDs...)
		if addSpecial {
			e.add(0, p.sep)
		}
	}
	return e
}
