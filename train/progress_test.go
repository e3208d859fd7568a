package train

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// clock is a time that tests move on.
type clock struct{ t time.Time }

func newClock() *clock                { return &clock{time.Unix(1_700_000_000, 0)} }
func (c *clock) now() time.Time       { return c.t }
func (c *clock) pass(seconds float64) { c.t = c.t.Add(time.Duration(seconds * float64(time.Second))) }
func lines(b *bytes.Buffer) (l []string) {
	return strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
}

func TestProgressLines(t *testing.T) {
	var out bytes.Buffer
	c := newClock()
	p := newProgress(ProgressOptions{Out: &out, Total: 100, Every: 40}, false, c.now)
	for step := 1; step <= 100; step++ {
		c.pass(map[bool]float64{true: 30, false: 0.5}[step == 1]) // the first step compiles
		p.Update(ProgressUpdate{Step: step, Epoch: float64(step) / 50, Loss: 4 - float64(step)/100, Tokens: 1000})
		if step == 50 {
			c.pass(100)
			p.Skip()
			p.Print("eval loss 3.1")
		}
	}
	p.Close()
	require.Equal(t, []string{
		"step 1/100  epoch 0.02  loss 3.9900  33 tokens/s  ETA 49m30s",
		"step 40/100  epoch 0.80  loss 3.6000  2,000 tokens/s  ETA 30s",
		"eval loss 3.1",
		"step 80/100  epoch 1.60  loss 3.2000  2,000 tokens/s  ETA 10s",
		"step 100/100  epoch 2.00  loss 3.0000  2,000 tokens/s",
	}, lines(&out))
	require.InDelta(t, 2000, p.TokensPerSecond(), 1e-6)
}

func TestProgressResumed(t *testing.T) {
	var out bytes.Buffer
	c := newClock()
	p := newProgress(ProgressOptions{Out: &out, Total: 20, Done: 10}, false, c.now)
	require.Zero(t, p.TokensPerSecond())
	c.pass(2)
	p.Update(ProgressUpdate{Step: 11, Epoch: 1, Loss: 1, Tokens: 100})
	require.Equal(t, "step 11/20  epoch 1.00  loss 1.0000  50 tokens/s  ETA 18s\n", out.String(), "the ten steps before cost nothing now")
	for step := 12; step <= 14; step++ {
		p.Update(ProgressUpdate{Step: step})
	}
	require.Len(t, lines(&out), 4, "by default a twentieth of the steps lies between two lines")
}

func TestProgressBar(t *testing.T) {
	var out bytes.Buffer
	c := newClock()
	p := newProgress(ProgressOptions{Out: &out, Total: 4}, true, c.now)
	for step := 1; step <= 4; step++ {
		c.pass(1)
		p.Update(ProgressUpdate{Step: step, Loss: 2.5, Tokens: 1234})
		if step == 2 {
			p.Print("saved results/checkpoint-2")
		}
	}
	p.Close()
	p.Update(ProgressUpdate{Step: 4}) // after the end it is plain, and harmless
	text := out.String()
	require.Contains(t, text, "saved results/checkpoint-2\n")
	require.Contains(t, text, "\r")
	last := text[strings.LastIndex(text[:strings.Index(text, "step 4/4")], "\r"):]
	require.Contains(t, last, "100%")
	require.Contains(t, last, "(4/4)")
	require.Contains(t, last, "loss 2.5000  1,234 tokens/s")
	require.NotContains(t, last, "ETA")
}

func TestProgressSilent(t *testing.T) {
	var out bytes.Buffer
	c := newClock()
	p := newProgress(ProgressOptions{Out: &out, Total: 4, Silent: true}, true, c.now)
	c.pass(1)
	p.Update(ProgressUpdate{Step: 4, Tokens: 10})
	p.Print("x")
	p.Close()
	require.Empty(t, out.String())
	require.Equal(t, 10.0, p.TokensPerSecond(), "speed is measured all the same")
}

func TestMeter(t *testing.T) {
	c := newClock()
	m := newMeter(0, c.now)
	require.Zero(t, m.tokensPerSecond())
	require.Zero(t, m.perStep())
	for step := 1; step <= 100; step++ {
		c.pass(map[bool]float64{true: 2, false: 1}[step <= 50])
		m.add(step, 10)
	}
	require.Equal(t, 10.0, m.tokensPerSecond(), "only the last steps count")
	require.Equal(t, time.Second, m.perStep())
	// Micro-batches: several updates of one step.
	m = newMeter(0, c.now)
	c.pass(5)
	m.add(0, 10)
	c.pass(5)
	m.add(0, 10)
	require.Equal(t, 2.0, m.tokensPerSecond())
	require.Zero(t, m.perStep())
}

func TestShortDuration(t *testing.T) {
	for seconds, want := range map[float64]string{
		0: "0s", 0.4: "0s", 59.6: "1m00s", 61: "1m01s", 3600: "1h00m", 3 * 3600: "3h00m", 47*3600 + 3599: "47h59m", 49 * 3600: "2d01h",
	} {
		require.Equal(t, want, shortDuration(time.Duration(seconds*float64(time.Second))))
	}
}

func TestGrouped(t *testing.T) {
	for n, want := range map[int]string{0: "0", 999: "999", 1000: "1,000", 1234567: "1,234,567", -1000: "-1,000", -999: "-999"} {
		require.Equal(t, want, grouped(n))
	}
}
