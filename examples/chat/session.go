package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"

	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/models/tokenizer"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// session is a conversation and who answers in it.
type session struct {
	console
	model   *models.Model
	pm      *peft.PeftModel // nil: there are no adapters
	view    site.View
	virtual int // tokens that the active adapters put before those of the text
	options models.GenerateOptions
	system  string
	turns   []tokenizer.Message
}

func newSession(model *models.Model, pm *peft.PeftModel, o options, c console) (*session, error) {
	s := &session{console: c, model: model, pm: pm, view: model, options: o.generate, system: o.system}
	s.options.PromptIsComplete = true // by the template
	if pm != nil {
		s.view, s.virtual = pm, pm.VirtualTokens()
	}
	_, err := models.NewGenerator(s.view) // or it is no language model
	if err != nil {
		return nil, err
	}
	config := model.Config()
	fmt.Fprintf(s.out, "%s, %s of %d layers, on %s\n", name(model), config.ModelType, config.NumLayers, model.Backend().Name())
	s.who()
	fmt.Fprintln(s.out, "/help lists the commands")
	return s, nil
}

func name(m *models.Model) string {
	if m.NameOrPath() == "." {
		return "the tiny base"
	}
	return m.NameOrPath()
}

// talk answers line after line until the input ends or says /quit.
func (s *session) talk(ctx context.Context) error {
	lines := bufio.NewScanner(s.in)
	lines.Buffer(nil, 1<<20)
	for {
		fmt.Fprint(s.out, "\n> ")
		if !lines.Scan() {
			break
		}
		line := strings.TrimSpace(lines.Text())
		if !s.terminal {
			fmt.Fprintln(s.out, line)
		}
		switch {
		case line == "":
		case line == "/quit" || line == "/exit":
			return nil
		case strings.HasPrefix(line, "/"):
			if err := s.command(line); err != nil {
				fmt.Fprintln(s.out, err)
			}
		default:
			if err := s.answer(ctx, line); err != nil {
				return err
			}
		}
	}
	fmt.Fprintln(s.out)
	return lines.Err()
}

// answer says something and streams what the model says to it. An answer that Ctrl-C
// stopped is kept as far as it came.
func (s *session) answer(ctx context.Context, text string) error {
	stopped, release := signal.NotifyContext(ctx, os.Interrupt)
	defer release()
	s.turns = append(s.turns, tokenizer.Message{Role: "user", Content: text})
	prompt, err := s.prompt()
	if err != nil { // a template that wants no system prompt, a text that is too long
		s.turns = s.turns[:len(s.turns)-1]
		fmt.Fprintln(s.out, err)
		return nil
	}
	generator, err := models.NewGenerator(s.view)
	if err != nil {
		return err
	}
	defer generator.Close()
	said := &speech{out: s.out}
	options := s.options
	options.Stream = said.stream
	answers, err := generator.GenerateText(stopped, []string{prompt}, options)
	s.options.Seed++ // the same question may get another answer
	fmt.Fprintln(s.out)
	switch {
	case err == nil && answers[0].FinishReason == models.FinishLength:
		fmt.Fprintf(s.out, "(cut off after %d tokens)\n", len(answers[0].IDs))
	case err != nil && stopped.Err() != nil && ctx.Err() == nil:
		fmt.Fprintln(s.out, "(stopped)")
	case err != nil:
		return err
	}
	s.turns = append(s.turns, tokenizer.Message{Role: "assistant", Content: strings.TrimSpace(said.text.String())})
	return nil
}

// speech writes an answer without the blanks that it begins with.
type speech struct {
	out  io.Writer
	text strings.Builder
}

func (s *speech) stream(_ int, piece string) error {
	if s.text.Len() == 0 {
		piece = strings.TrimLeft(piece, " \n")
	}
	s.text.WriteString(piece)
	_, err := io.WriteString(s.out, piece)
	return err
}

// prompt renders the conversation. Where it leaves no room for an answer, the oldest
// question and its answer are forgotten.
func (s *session) prompt() (string, error) {
	room := min(s.options.MaxNewTokens, s.model.MaxPositions()/4)
	forgotten := 0
	for {
		messages := s.turns
		if s.system != "" {
			messages = append([]tokenizer.Message{{Role: "system", Content: s.system}}, messages...)
		}
		text, err := s.model.Tokenizer.ApplyChatTemplate(messages, tokenizer.ChatOptions{AddGenerationPrompt: true})
		if err != nil {
			return "", err
		}
		tokens := s.virtual + len(s.model.Tokenizer.Encode(text, tokenizer.EncodeOptions{}))
		switch {
		case tokens+room <= s.model.MaxPositions():
			if forgotten > 0 {
				fmt.Fprintf(s.out, "(the first %d lines of the conversation no longer fit)\n", forgotten)
			}
			return text, nil
		case len(s.turns) == 1:
			return "", fmt.Errorf("that is %d tokens, of which the model can take %d and still answer", tokens, s.model.MaxPositions()-room)
		}
		s.turns, forgotten = s.turns[2:], forgotten+2
	}
}

var errNoAdapters = errors.New("there are no adapters: give some with -adapter")
