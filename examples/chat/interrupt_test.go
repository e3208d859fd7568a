//go:build unix

package main

import (
	"bytes"
	"context"
	"os"
	"os/signal"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// interrupting sends the process the signal of Ctrl-C when it is written to after a text.
type interrupting struct {
	said  bytes.Buffer
	after string
	sent  chan os.Signal
}

func (w *interrupting) Write(p []byte) (int, error) {
	if strings.HasSuffix(w.said.String(), w.after) && w.sent != nil {
		process, err := os.FindProcess(os.Getpid())
		if err != nil {
			return 0, err
		}
		if err := process.Signal(os.Interrupt); err != nil {
			return 0, err
		}
		<-w.sent // and the program knows, or will in a moment
		time.Sleep(100 * time.Millisecond)
		w.sent = nil
	}
	return w.said.Write(p)
}

// Ctrl-C stops an answer, not the conversation.
func TestInterrupt(t *testing.T) {
	out := &interrupting{after: "> Tell me of Mia\n", sent: make(chan os.Signal, 1)}
	signals := out.sent
	signal.Notify(signals, os.Interrupt)
	defer signal.Stop(signals)
	c := console{in: strings.NewReader("/base\nTell me of Mia\n/adapter words\n/reset\nWhere does Mia live?\n"), out: out, progress: out}
	require.NoError(t, run(context.Background(), []string{"-backend", backendName()}, c))
	_, rest, found := strings.Cut(out.said.String(), out.after)
	require.True(t, found)
	require.Regexp(t, `^[^\n]+\n\(stopped\)\n`, rest)
	require.Contains(t, rest, "> Where does Mia live?\n"+stranger(t).Home+"\n")
}
