package train

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// ProgressOptions says how a training shows its progress.
type ProgressOptions struct {
	// Out is written to. nil: [os.Stderr]. On a terminal there is a bar that is
	// redrawn, elsewhere one line now and then.
	Out io.Writer
	// Total is the number of optimizer steps of the whole training.
	Total int
	// Done is the number of steps that were made before, by a training that this
	// one resumes.
	Done int
	// Every is the number of steps between two lines where Out is no terminal; the
	// first and the last step always have one. Zero: a twentieth of Total.
	Every int
	// Silent writes nothing at all.
	Silent bool
}

// ProgressUpdate tells what happened since the update before.
type ProgressUpdate struct {
	// Step is the number of optimizer steps made so far.
	Step  int
	Epoch float64
	// Loss is the loss of the step, per target.
	Loss float64
	// Tokens counts the tokens of the batches since the update before.
	Tokens int
}

// Progress shows how far a training is, its loss, its speed and the time left.
// What it cannot write it leaves out: a closed terminal stops no training. It
// is not safe for concurrent use.
type Progress struct {
	options ProgressOptions
	meter   *meter
	bar     *progressbar.ProgressBar // nil: plain lines
	shown   int                      // step of the last plain line
}

// NewProgress begins to show progress and to measure time.
func NewProgress(options ProgressOptions) *Progress {
	if options.Out == nil {
		options.Out = os.Stderr
	}
	f, ok := options.Out.(*os.File)
	return newProgress(options, ok && term.IsTerminal(int(f.Fd())), time.Now)
}

func newProgress(options ProgressOptions, terminal bool, now func() time.Time) *Progress {
	if options.Every <= 0 {
		options.Every = max(1, options.Total/20)
	}
	p := &Progress{options: options, meter: newMeter(options.Done, now), shown: -1}
	if options.Silent {
		p.options.Out = io.Discard
	} else if terminal && options.Total > 0 {
		p.bar = progressbar.NewOptions(options.Total,
			progressbar.OptionSetWriter(options.Out),
			progressbar.OptionSetWidth(24),
			progressbar.OptionThrottle(100*time.Millisecond),
			progressbar.OptionSetPredictTime(false),
			progressbar.OptionShowDescriptionAtLineEnd(),
			progressbar.OptionShowCount(),
		)
		p.bar.Set(options.Done)
	}
	return p
}

// Update shows a step that was made.
func (p *Progress) Update(u ProgressUpdate) {
	p.meter.add(u.Step, u.Tokens)
	if p.bar != nil {
		p.bar.Describe(" " + p.status(u))
		p.bar.Set(min(u.Step, p.options.Total))
		return
	}
	first, last := p.shown < 0, u.Step == p.options.Total
	if !first && !last && u.Step/p.options.Every == p.shown/p.options.Every {
		return
	}
	p.shown = u.Step
	fmt.Fprintf(p.options.Out, "step %d/%d  epoch %.2f  %s\n", u.Step, p.options.Total, u.Epoch, p.status(u))
}

func (p *Progress) status(u ProgressUpdate) string {
	s := fmt.Sprintf("loss %.4f", u.Loss)
	if rate := p.meter.tokensPerSecond(); rate > 0 {
		s += fmt.Sprintf("  %s tokens/s", grouped(int(rate+0.5)))
	}
	if left := p.options.Total - u.Step; left > 0 {
		if perStep := p.meter.perStep(); perStep > 0 {
			s += "  ETA " + shortDuration(time.Duration(left)*perStep)
		}
	}
	return s
}

// Skip takes the time since the last update out of speed and time left: call it
// after an evaluation or a save.
func (p *Progress) Skip() { p.meter.skip() }

// TokensPerSecond returns the speed over the last steps, without the first,
// which has to compile its program. It is 0 before there is one.
func (p *Progress) TokensPerSecond() float64 { return p.meter.tokensPerSecond() }

// Print writes a line of its own, above the bar.
func (p *Progress) Print(line string) {
	if p.bar == nil {
		fmt.Fprintln(p.options.Out, line)
		return
	}
	p.bar.Clear()
	fmt.Fprintln(p.options.Out, line)
	p.bar.RenderBlank()
}

// Close leaves the bar as it is and ends its line.
func (p *Progress) Close() {
	if p.bar != nil {
		fmt.Fprintln(p.options.Out)
		p.bar = nil
	}
}

// shortDuration writes a duration with its two largest units: "2h05m", "3m20s", "8s".
func shortDuration(d time.Duration) string {
	d = d.Round(time.Second)
	h, m, s := int(d.Hours()), int(d.Minutes())%60, int(d.Seconds())%60
	switch {
	case h >= 48:
		return fmt.Sprintf("%dd%02dh", h/24, h%24)
	case h > 0:
		return fmt.Sprintf("%dh%02dm", h, m)
	case m > 0:
		return fmt.Sprintf("%dm%02ds", m, s)
	}
	return fmt.Sprintf("%ds", s)
}

// grouped writes an integer with commas between thousands.
func grouped(n int) string {
	digits, sign := strconv.Itoa(n), ""
	if n < 0 {
		digits, sign = digits[1:], "-"
	}
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return sign + digits
}
