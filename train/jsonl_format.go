package train

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/gopeft/gopeft/models/tokenizer"
)

// sample is what a record holds: a text, a prompt with its completion, or a chat.
type sample struct {
	text, prompt, completion string
	chat                     chat
}

// chat is a conversation, with the tools that the assistant was offered.
type chat struct {
	messages []tokenizer.Message
	tools    []any
}

type sampleKind int

const (
	textSample sampleKind = iota
	promptSample
	chatSample
)

// format says which fields of a file's records are read, and as what.
type format struct {
	kind   sampleKind
	fields []string
}

// knownFormats are looked for when no fields are named.
var knownFormats = []format{
	{textSample, []string{"text"}},
	{promptSample, []string{"prompt", "completion"}},
	{chatSample, []string{"messages"}},
}

// formatOf decides a file's format by the fields that were named, or by those of
// its first record.
func formatOf(first record, fields []string) (format, error) {
	switch len(fields) {
	case 1:
		raw, err := first.get(fields[0])
		if err != nil {
			return format{}, err
		}
		switch kind := jsonKind(raw); kind {
		case "string":
			return format{textSample, fields}, nil
		case "array":
			return format{chatSample, fields}, nil
		default:
			return format{}, fmt.Errorf("field %q: want a string or a list of messages, got %s", fields[0], kind)
		}
	case 2:
		return format{promptSample, fields}, nil
	}
	var found []format
	for _, f := range knownFormats {
		if !slices.ContainsFunc(f.fields, func(name string) bool { return first[name] == nil }) {
			found = append(found, f)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return format{}, fmt.Errorf(`want the field "text", or "prompt" and "completion", or "messages"; found %s: name the fields to use`, first.fieldNames())
	}
	return format{}, fmt.Errorf("%s and %s could both be meant: name the fields to use",
		strings.Join(found[0].fields, "+"), strings.Join(found[1].fields, "+"))
}

// read returns what the record holds in this format.
func (f format) read(r record) (s sample, err error) {
	switch f.kind {
	case textSample:
		s.text, err = r.text(f.fields[0])
	case promptSample:
		if s.prompt, err = r.text(f.fields[0]); err == nil {
			s.completion, err = r.text(f.fields[1])
		}
	case chatSample:
		if s.chat.messages, err = r.messages(f.fields[0]); err == nil {
			s.chat.tools, err = r.tools()
		}
	}
	return s, err
}

// messages returns a field that must be a list of messages.
func (r record) messages(field string) ([]tokenizer.Message, error) {
	list, err := r.list(field, "a list of messages")
	if err != nil {
		return nil, err
	}
	messages := make([]tokenizer.Message, len(list))
	for i, raw := range list {
		if messages[i], err = parseMessage(raw); err != nil {
			return nil, fmt.Errorf("field %q: message %d: %w", field, i+1, err)
		}
	}
	return messages, nil
}

// parseMessage reads an object with a role and a content, which is a string or a
// list of parts; a message that calls tools needs none. All other keys are for
// the chat template.
func parseMessage(raw json.RawMessage) (m tokenizer.Message, err error) {
	if kind := jsonKind(raw); kind != "object" {
		return m, fmt.Errorf("want an object, got %s", kind)
	}
	var r record
	if err := json.Unmarshal(raw, &r); err != nil {
		return m, err
	}
	role, err := r.text("role")
	if err != nil {
		return m, err
	}
	if role == "" {
		return m, errors.New(`field "role" is empty`)
	}
	content, kind := r["content"], "nothing"
	if content != nil {
		kind = jsonKind(content)
	}
	calls := r["tool_calls"] != nil && jsonKind(r["tool_calls"]) == "array"
	if kind != "string" && kind != "array" && !(calls && (kind == "null" || kind == "nothing")) {
		return m, fmt.Errorf(`field "content": want a string, got %s`, kind)
	}
	err = json.Unmarshal(raw, &m)
	return m, err
}

// tools returns the list "tools" beside a chat, nil if there is none.
func (r record) tools() ([]any, error) {
	if raw := r["tools"]; raw == nil || jsonKind(raw) == "null" {
		return nil, nil
	}
	list, err := r.list("tools", "a list of tools")
	if err != nil || len(list) == 0 {
		return nil, err
	}
	tools := make([]any, len(list))
	for i, raw := range list {
		tools[i] = raw
	}
	return tools, nil
}

// list returns the elements of a field that must be an array, described by want.
func (r record) list(field, want string) ([]json.RawMessage, error) {
	raw, err := r.get(field)
	if err != nil {
		return nil, err
	}
	if kind := jsonKind(raw); kind != "array" {
		return nil, fmt.Errorf("field %q: want %s, got %s", field, want, kind)
	}
	var list []json.RawMessage
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, fmt.Errorf("field %q: %w", field, err)
	}
	return list, nil
}

// fieldNames lists the fields for an error message.
func (r record) fieldNames() string {
	if len(r) == 0 {
		return "no fields"
	}
	names := slices.Sorted(maps.Keys(r))
	const most = 12
	more := ""
	if len(names) > most {
		names, more = names[:most], ", ..."
	}
	for i, name := range names {
		names[i] = fmt.Sprintf("%q", name)
	}
	return strings.Join(names, ", ") + more
}
