package train

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// sample is what a record holds: a text, a prompt with its completion, or a chat.
type sample struct {
	text, prompt, completion string
	messages                 []message
}

// message is one turn of a chat.
type message struct{ role, content string }

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
		if s.messages, err = r.messages(f.fields[0]); err == nil {
			err = r.refuseTools()
		}
	}
	return s, err
}

// messages returns a field that must be a list of objects with the strings
// "role" and "content".
func (r record) messages(field string) ([]message, error) {
	raw, err := r.get(field)
	if err != nil {
		return nil, err
	}
	if kind := jsonKind(raw); kind != "array" {
		return nil, fmt.Errorf("field %q: want a list of messages, got %s", field, kind)
	}
	var list []json.RawMessage
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, fmt.Errorf("field %q: %w", field, err)
	}
	messages := make([]message, len(list))
	for i, raw := range list {
		if messages[i], err = parseMessage(raw); err != nil {
			return nil, fmt.Errorf("field %q: message %d: %w", field, i+1, err)
		}
	}
	return messages, nil
}

func parseMessage(raw json.RawMessage) (m message, err error) {
	if kind := jsonKind(raw); kind != "object" {
		return m, fmt.Errorf("want an object, got %s", kind)
	}
	var r record
	if err := json.Unmarshal(raw, &r); err != nil {
		return m, err
	}
	if m.role, err = r.text("role"); err != nil {
		return m, err
	}
	if m.role == "" {
		return m, errors.New(`field "role" is empty`)
	}
	if calls := r["tool_calls"]; calls != nil && !slices.Contains([]string{"null", "[]"}, string(calls)) {
		return m, errors.New(`field "tool_calls": tool calls are not supported`)
	}
	m.content, err = r.text("content")
	return m, err
}

// refuseTools reports a list of tools: the chat would be rendered without it.
func (r record) refuseTools() error {
	if tools := r["tools"]; tools != nil && !slices.Contains([]string{"null", "[]", `""`}, string(tools)) {
		return errors.New(`field "tools": chats with tools are not supported`)
	}
	return nil
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
