package main

import (
	"fmt"
	"slices"
	"strings"
)

const help = `/adapter NAME[,NAME]  answer with this adapter from now on, or with several together
/adapters             list the adapters
/base                 answer without adapters
/system TEXT          change the system prompt; without TEXT there is none
/reset                forget the conversation
/quit                 end; so does the end of the input
`

// command does what a line that begins with a slash says.
func (s *session) command(line string) error {
	verb, rest, _ := strings.Cut(line, " ")
	rest = strings.TrimSpace(rest)
	switch verb {
	case "/help":
		fmt.Fprint(s.out, help)
	case "/adapter":
		return s.with(strings.FieldsFunc(rest, func(r rune) bool { return r == ',' || r == ' ' })...)
	case "/adapters":
		return s.list()
	case "/base":
		s.view, s.virtual = s.model, 0
		s.who()
	case "/system":
		s.system = rest
	case "/reset":
		s.turns = nil
	default:
		return fmt.Errorf("no command %s; /help lists them", verb)
	}
	return nil
}

// with lets adapters answer. The conversation goes on.
func (s *session) with(names ...string) error {
	if s.pm == nil {
		return errNoAdapters
	}
	if len(names) == 0 {
		return fmt.Errorf("which adapter? There are %s", strings.Join(s.pm.Adapters(), ", "))
	}
	view, err := s.pm.With(names...)
	if err != nil {
		return err
	}
	s.pm, s.view, s.virtual = view, view, view.VirtualTokens()
	s.who()
	return nil
}

// active are the names of the adapters that answer.
func (s *session) active() []string {
	if s.pm == nil || s.view != s.pm {
		return nil
	}
	return s.pm.Active()
}

func (s *session) who() {
	if names := s.active(); len(names) > 0 {
		fmt.Fprintf(s.out, "adapter %s answers\n", strings.Join(names, " with "))
		return
	}
	fmt.Fprintln(s.out, "the base answers")
}

func (s *session) list() error {
	if s.pm == nil {
		return errNoAdapters
	}
	for _, a := range s.pm.ModelStatus().Adapters {
		mark := " "
		if slices.Contains(s.active(), a.Name) {
			mark = "*"
		}
		fmt.Fprintf(s.out, "%s %-16s %-12s %d parameters\n", mark, a.Name, a.Method, a.Parameters)
	}
	return nil
}
