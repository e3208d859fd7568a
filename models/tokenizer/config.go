package tokenizer

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
)

// config is what the files beside tokenizer.json say.
type config struct {
	special   map[string]string // "bos_token" -> "<s>"; also unk, eos, pad, sep, cls, mask
	bos       int32             // -1: none
	eos       int32
	pad       int32
	eosIDs    []int32
	templates map[string]string // chat templates by name; the usual one is "default"
}

// specialNames are the special tokens that a chat template can use by name.
var specialNames = []string{"bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"}

// readConfig reads the files beside tokenizer.json. extra are the added tokens
// of tokenizer_config.json, by id.
func (s source) readConfig() (c *config, extra []AddedToken, err error) {
	c = &config{special: map[string]string{}, templates: map[string]string{}}
	for _, name := range []string{specialTokensMap, tokenizerConfig} {
		var fields map[string]json.RawMessage
		if _, err := s.readJSON(name, &fields); err != nil {
			return nil, nil, err
		}
		if err := c.readSpecial(fields); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", name, err)
		}
		if name != tokenizerConfig {
			continue
		}
		if err := c.addTemplates(fields["chat_template"]); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", name, err)
		}
		if extra, err = addedDecoder(fields["added_tokens_decoder"]); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	if err := s.readTemplates(c); err != nil {
		return nil, nil, err
	}
	var generation struct {
		EOS json.RawMessage `json:"eos_token_id"`
	}
	if _, err := s.readJSON(generationConfig, &generation); err != nil {
		return nil, nil, err
	}
	if c.eosIDs, err = idList(generation.EOS); err != nil {
		return nil, nil, fmt.Errorf("%s: eos_token_id: %w", generationConfig, err)
	}
	return c, extra, nil
}

// readSpecial reads the tokens, each a string or an object with a content.
func (c *config) readSpecial(fields map[string]json.RawMessage) error {
	for _, name := range specialNames {
		raw := fields[name]
		if isNull(raw) {
			continue
		}
		var text string
		var token struct{ Content *string }
		if json.Unmarshal(raw, &text) == nil {
			c.special[name] = text
		} else if json.Unmarshal(raw, &token) == nil && token.Content != nil {
			c.special[name] = *token.Content
		} else {
			return fmt.Errorf("%s is %.60s, wanted a string or an object with content", name, raw)
		}
	}
	return nil
}

// addTemplates reads chat_template: one template, or a list of named ones.
func (c *config) addTemplates(raw json.RawMessage) error {
	if isNull(raw) {
		return nil
	}
	var one string
	if json.Unmarshal(raw, &one) == nil {
		c.templates["default"] = one
		return nil
	}
	var list []struct{ Name, Template string }
	if err := json.Unmarshal(raw, &list); err != nil {
		return fmt.Errorf("chat_template is neither a string nor a list of named templates: %w", err)
	}
	for _, t := range list {
		c.templates[t.Name] = t.Template
	}
	return nil
}

// readTemplates reads the template files, which win over tokenizer_config.json.
func (s source) readTemplates(c *config) error {
	var file struct {
		Template json.RawMessage `json:"chat_template"`
	}
	if _, err := s.readJSON(chatTemplateJSON, &file); err != nil {
		return err
	}
	if err := c.addTemplates(file.Template); err != nil {
		return fmt.Errorf("%s: %w", chatTemplateJSON, err)
	}
	text, err := s.read(chatTemplate)
	switch {
	case err == nil:
		c.templates["default"] = string(text)
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	const folder = "additional_chat_templates"
	more, err := fs.Glob(s.fsys, path.Join(s.dir, folder, "*.jinja"))
	if err != nil {
		return err
	}
	for _, file := range more {
		text, err := fs.ReadFile(s.fsys, file)
		if err != nil {
			return err
		}
		name := path.Base(file)
		c.templates[name[:len(name)-len(".jinja")]] = string(text)
	}
	return nil
}

// addedDecoder reads added_tokens_decoder, which maps ids to tokens.
func addedDecoder(raw json.RawMessage) ([]AddedToken, error) {
	if isNull(raw) {
		return nil, nil
	}
	var byID map[string]AddedToken
	if err := json.Unmarshal(raw, &byID); err != nil {
		return nil, fmt.Errorf("added_tokens_decoder: %w", err)
	}
	var tokens []AddedToken
	for key, t := range byID {
		id, err := strconv.ParseInt(key, 10, 32)
		if err != nil || id < 0 {
			return nil, fmt.Errorf("added_tokens_decoder: %q is not an id", key)
		}
		t.ID = int32(id)
		tokens = append(tokens, t)
	}
	slices.SortFunc(tokens, func(a, b AddedToken) int { return cmp.Compare(a.ID, b.ID) })
	return tokens, nil
}

// idList reads an id, a list of ids or null.
func idList(raw json.RawMessage) ([]int32, error) {
	if isNull(raw) {
		return nil, nil
	}
	var one int32
	if json.Unmarshal(raw, &one) == nil {
		return []int32{one}, nil
	}
	var list []int32
	err := json.Unmarshal(raw, &list)
	return list, err
}

// resolveSpecial finds the ids of the special tokens. A name without a token is
// an error: generation would never stop, or pad with something else.
func (t *Tokenizer) resolveSpecial() error {
	c := &t.config
	for _, s := range []struct {
		name string
		id   *int32
	}{{"bos_token", &c.bos}, {"eos_token", &c.eos}, {"pad_token", &c.pad}} {
		token, ok := c.special[s.name]
		if !ok {
			*s.id = -1
			continue
		}
		id, ok := t.ID(token)
		if !ok {
			return fmt.Errorf("%s: %s %q is not in the vocabulary", tokenizerConfig, s.name, token)
		}
		*s.id = id
	}
	return nil
}

// BOS returns the id of the beginning-of-sequence token, false if there is none.
func (t *Tokenizer) BOS() (int32, bool) { return t.config.known(t.config.bos) }

// EOS returns the id of the end-of-sequence token, false if there is none.
func (t *Tokenizer) EOS() (int32, bool) { return t.config.known(t.config.eos) }

// PAD returns the id of the padding token, false if there is none.
func (t *Tokenizer) PAD() (int32, bool) { return t.config.known(t.config.pad) }

// known makes an id public. Without the files beside tokenizer.json none is known.
func (c *config) known(id int32) (int32, bool) {
	if c.special == nil || id < 0 {
		return 0, false
	}
	return id, true
}

// EOSIDs returns the ids that end a generated text: those of
// generation_config.json, without it the end-of-sequence token, else none.
func (t *Tokenizer) EOSIDs() []int32 {
	if len(t.config.eosIDs) > 0 {
		return slices.Clone(t.config.eosIDs)
	}
	if id, ok := t.EOS(); ok {
		return []int32{id}
	}
	return nil
}
