package tokenizer

import (
	"encoding/json"
	"testing"
)

func TestGoldenChats(t *testing.T) {
	var in goldenInputs
	readGolden(t, "strings", &in)
	for _, name := range allTokenizers {
		t.Run(name, func(t *testing.T) {
			tok, g := loadGolden(t, name)
			if g.Chats == nil {
				if tok.HasChatTemplate() {
					t.Error("there is a chat template that transformers does not see")
				}
				return
			}
			for i, want := range g.Chats {
				var messages []Message
				for _, raw := range in.Chats[i].Messages {
					var m Message
					if err := json.Unmarshal(raw, &m); err != nil {
						t.Fatal(err)
					}
					messages = append(messages, m)
				}
				got, err := tok.ApplyChatTemplate(messages, chatOptions(t, in.Chats[i].Options))
				switch {
				case want.Error != nil:
					if err == nil {
						t.Errorf("%s: got %q, transformers fails with %s", want.Name, got, *want.Error)
					}
				case err != nil:
					t.Errorf("%s: %v", want.Name, err)
				case got != *want.Text:
					t.Errorf("%s:\n got %q\nwant %q", want.Name, got, *want.Text)
				}
			}
		})
	}
}

func chatOptions(t *testing.T, raw map[string]json.RawMessage) ChatOptions {
	o := ChatOptions{Extra: map[string]any{}}
	for key, value := range raw {
		switch key {
		case "add_generation_prompt":
			o.AddGenerationPrompt = string(value) == "true"
		case "tools":
			var tools []json.RawMessage
			if err := json.Unmarshal(value, &tools); err != nil {
				t.Fatal(err)
			}
			for _, tool := range tools {
				o.Tools = append(o.Tools, tool)
			}
		default:
			o.Extra[key] = value
		}
	}
	return o
}
