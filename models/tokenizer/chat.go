package tokenizer

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/gopeft/gopeft/models/tokenizer/internal/jinja"
)

// ErrNoChatTemplate says that the model comes without a chat template.
var ErrNoChatTemplate = errors.New("the model has no chat template")

// Message is one turn of a conversation. A template sees it as a dictionary with
// the keys role and content and those of the other fields that are set.
type Message struct {
	Role    string // system, user, assistant, tool
	Content string
	// Reasoning is what the assistant thought before Content; templates see it as
	// reasoning_content.
	Reasoning string
	ToolCalls []ToolCall
	// Extra adds keys, or replaces those of the fields above: a content of several
	// parts, for example. Values are as in [ChatOptions].Tools. A nil value takes
	// the key away, as transformers does with None.
	Extra map[string]any
}

// ToolCall is a function that the assistant wants called.
type ToolCall struct {
	ID        string // may be empty
	Name      string
	Arguments any // usually an object
}

// UnmarshalJSON reads {"role": ..., "content": ...}; other keys, and a content
// that is not text, go to Extra as json.RawMessage.
func (m *Message) UnmarshalJSON(data []byte) error {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(data, &fields); err != nil {
		return err
	}
	if err := json.Unmarshal(fields["role"], &m.Role); err != nil {
		return fmt.Errorf("message: role: %w", err)
	}
	for key, raw := range fields {
		switch {
		case key == "role":
		case key == "content" && json.Unmarshal(raw, &m.Content) == nil && raw[0] == '"':
		case string(raw) == "null":
			m.setExtra(key, nil)
		default:
			m.setExtra(key, raw)
		}
	}
	return nil
}

func (m *Message) setExtra(key string, v any) {
	if m.Extra == nil {
		m.Extra = map[string]any{}
	}
	m.Extra[key] = v
}

// ChatOptions changes how a conversation is rendered.
type ChatOptions struct {
	// AddGenerationPrompt ends the text where the assistant's answer begins.
	AddGenerationPrompt bool
	// Tools are the functions that the model may call, usually JSON schemas.
	// A struct or json.RawMessage keeps the order of its fields, which shows in
	// the text; the keys of a Go map are sorted.
	Tools []any
	// Documents are for templates that know retrieved documents.
	Documents []any
	// Template is the name of the template where a model has several. The default
	// is "tool_use" with tools if there is one, else "default".
	Template string
	// Extra are more variables, such as enable_thinking.
	Extra map[string]any
	// Now is the time that the template sees. The default is time.Now().
	Now time.Time
}

// ApplyChatTemplate renders a conversation with the model's template, as
// transformers' apply_chat_template(tokenize=False) does. The text holds the
// special tokens already: encode it without AddSpecialTokens.
//
// The error is [ErrNoChatTemplate] without a template; a template that refuses
// the conversation gives its own message.
func (t *Tokenizer) ApplyChatTemplate(messages []Message, o ChatOptions) (string, error) {
	name, source, err := t.chatTemplate(o)
	if err != nil {
		return "", fmt.Errorf("tokenizer: chat template: %w", err)
	}
	if len(messages) == 0 {
		return "", errors.New("tokenizer: chat template: there are no messages")
	}
	compiled, err := t.compiledTemplate(name, source)
	if err != nil {
		return "", fmt.Errorf("tokenizer: chat template %q: %w", name, err)
	}
	variables, err := t.chatVariables(messages, o)
	if err != nil {
		return "", fmt.Errorf("tokenizer: chat template %q: %w", name, err)
	}
	text, err := compiled.Render(variables, chatFunctions(o.Now))
	if err != nil {
		return "", fmt.Errorf("tokenizer: chat template %q: %w", name, err)
	}
	return text, nil
}

// HasChatTemplate says whether ApplyChatTemplate has a template to apply.
func (t *Tokenizer) HasChatTemplate() bool { return len(t.config.templates) > 0 }

func (t *Tokenizer) chatTemplate(o ChatOptions) (name, source string, err error) {
	templates := t.config.templates
	if len(templates) == 0 {
		return "", "", ErrNoChatTemplate
	}
	name = o.Template
	if name == "" {
		name = "default"
		if _, ok := templates["tool_use"]; ok && o.Tools != nil {
			name = "tool_use"
		}
	}
	source, ok := templates[name]
	if !ok {
		return "", "", fmt.Errorf("there is no template %q; there are %s", name, strings.Join(slices.Sorted(maps.Keys(templates)), ", "))
	}
	return name, source, nil
}

// compiledTemplate parses a template when it is used first: one that cannot be
// parsed must not keep the tokenizer from being loaded.
func (t *Tokenizer) compiledTemplate(name, source string) (*jinja.Template, error) {
	if compiled, ok := t.compiled.Load(name); ok {
		return compiled.(*jinja.Template), nil
	}
	compiled, err := jinja.Parse(source)
	if err != nil {
		return nil, err
	}
	t.compiled.Store(name, compiled)
	return compiled, nil
}

func (t *Tokenizer) chatVariables(messages []Message, o ChatOptions) (map[string]any, error) {
	variables := map[string]any{"add_generation_prompt": o.AddGenerationPrompt}
	for name, token := range t.config.special {
		variables[name] = token
	}
	list := &jinja.List{}
	for i, m := range messages {
		d, err := m.dict()
		if err != nil {
			return nil, fmt.Errorf("message %d: %w", i, err)
		}
		list.Items = append(list.Items, d)
	}
	variables["messages"] = list
	for name, values := range map[string][]any{"tools": o.Tools, "documents": o.Documents} {
		variables[name] = nil // None
		if values == nil {
			continue
		}
		list := &jinja.List{}
		for i, v := range values {
			value, err := jinja.Value(v)
			if err != nil {
				return nil, fmt.Errorf("%s[%d]: %w", name, i, err)
			}
			list.Items = append(list.Items, value)
		}
		variables[name] = list
	}
	for name, v := range o.Extra {
		value, err := jinja.Value(v)
		if err != nil {
			return nil, fmt.Errorf("variable %s: %w", name, err)
		}
		variables[name] = value
	}
	return variables, nil
}

// reasoningKeys are the names that reasoning goes by; transformers fills the
// first from any of them, and "thinking" too.
var reasoningKeys = []string{"reasoning_content", "thinking", "reasoning"}

func (m *Message) dict() (*jinja.Dict, error) {
	fields := map[string]any{"role": m.Role, "content": m.Content}
	order := []string{"role", "content"}
	set := func(key string, v any) {
		if _, there := fields[key]; !there {
			order = append(order, key)
		}
		fields[key] = v
	}
	if m.Reasoning != "" {
		set("reasoning_content", m.Reasoning)
	}
	if len(m.ToolCalls) > 0 {
		set("tool_calls", m.ToolCalls)
	}
	for _, key := range slices.Sorted(maps.Keys(m.Extra)) {
		set(key, m.Extra[key])
	}
	for _, key := range reasoningKeys {
		if v := fields[key]; v != nil {
			set("reasoning_content", v)
			if fields["thinking"] == nil {
				set("thinking", v)
			}
			break
		}
	}
	d := jinja.NewDict()
	for _, key := range order {
		if fields[key] == nil {
			continue
		}
		v, err := jinja.Value(fields[key])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", key, err)
		}
		d.Set(key, v)
	}
	return d, nil
}

// MarshalJSON writes a call as transformers has it in messages.
func (c ToolCall) MarshalJSON() ([]byte, error) {
	type function struct {
		Name      string `json:"name"`
		Arguments any    `json:"arguments"`
	}
	return json.Marshal(struct {
		ID       string   `json:"id,omitempty"`
		Type     string   `json:"type"`
		Function function `json:"function"`
	}{c.ID, "function", function{c.Name, c.Arguments}})
}

// chatFunctions are what transformers adds to Jinja.
func chatFunctions(now time.Time) map[string]jinja.Function {
	return map[string]jinja.Function{
		"raise_exception": func(args []any) (any, error) {
			if len(args) != 1 {
				return nil, errors.New("wanted a message")
			}
			return nil, fmt.Errorf("%v", args[0])
		},
		"strftime_now": func(args []any) (any, error) {
			if now.IsZero() {
				now = time.Now()
			}
			if len(args) == 1 {
				if format, ok := args[0].(string); ok {
					return strftime(now, format)
				}
			}
			return nil, errors.New("wanted a format")
		},
	}
}

// strftimeLayouts are the directives that time.Format has a layout for.
var strftimeLayouts = map[byte]string{
	'a': "Mon", 'A': "Monday", 'b': "Jan", 'B': "January", 'd': "02", 'H': "15", 'I': "03", 'j': "002",
	'm': "01", 'M': "04", 'p': "PM", 'S': "05", 'y': "06", 'Y': "2006", 'F': "2006-01-02", 'T': "15:04:05",
	'D': "01/02/06", 'R': "15:04", 'e': "_2", 'Z': "MST", 'z': "-0700",
}

// strftime is C's in the C locale.
func strftime(now time.Time, format string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(format); i++ {
		if format[i] != '%' {
			b.WriteByte(format[i])
			continue
		}
		if i++; i == len(format) {
			return "", fmt.Errorf("format %q ends in %%", format)
		}
		layout, ok := strftimeLayouts[format[i]]
		switch {
		case ok:
			b.WriteString(now.Format(layout))
		case format[i] == '%':
			b.WriteByte('%')
		case format[i] == '-' && i+1 < len(format) && strings.IndexByte("dmHIMSj", format[i+1]) >= 0:
			i++
			text := strings.TrimLeft(now.Format(strftimeLayouts[format[i]]), "0")
			if text == "" {
				text = "0"
			}
			b.WriteString(text)
		default:
			return "", fmt.Errorf("directive %%%c is not supported", format[i])
		}
	}
	return b.String(), nil
}
