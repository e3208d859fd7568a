package train

import (
	"bufio"
	"errors"
	"fmt"
	"image/color"
	"io"
	"math"
	"slices"
	"strconv"

	"github.com/gopeft/gopeft/internal/atomicfile"
	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"
)

// The picture is 1600 x 1000 pixels.
const (
	plotWidth  = 8 * vg.Inch
	plotHeight = 5 * vg.Inch
	plotDPI    = 200
	// plotPoints is the most points a curve is drawn with.
	plotPoints = 2000
)

var (
	colorRaw    = color.RGBA{R: 0xb3, G: 0xcd, B: 0xe8, A: 0xff}
	colorSmooth = color.RGBA{R: 0x1f, G: 0x5f, B: 0xa8, A: 0xff}
	colorEval   = color.RGBA{R: 0xd9, G: 0x5f, B: 0x02, A: 0xff}
	colorGrid   = color.Gray{Y: 0xe4}
	colorText   = color.Gray{Y: 0x30}
)

// PlotLoss draws the losses of a log over the optimizer steps into a PNG file:
// the training loss as logged and smoothed, and the evaluations as points. The
// file is replaced whole or not at all. A log without losses is an error.
func PlotLoss(path string, records []LogRecord) error {
	p, err := lossPlot(records)
	if err == nil {
		err = atomicfile.WriteFile(path, func(w io.Writer) error { return writePNG(w, p) })
	}
	if err != nil {
		return fmt.Errorf("train: plot loss: %w", err)
	}
	return nil
}

func lossPlot(records []LogRecord) (*plot.Plot, error) {
	var steps, evals plotter.XYs
	for _, r := range records {
		if r.StepLog != nil {
			steps = append(steps, plotter.XY{X: float64(r.Step), Y: r.Loss})
		}
		if r.EvalLog != nil {
			evals = append(evals, plotter.XY{X: float64(r.Step), Y: r.EvalLoss})
		}
	}
	if len(steps)+len(evals) == 0 {
		return nil, errors.New("the log holds no losses")
	}
	p := emptyPlot()
	if err := addTraining(p, thin(steps, plotPoints)); err != nil {
		return nil, err
	}
	if err := addEvaluations(p, evals); err != nil {
		return nil, err
	}
	setRange(p, steps, evals)
	return p, nil
}

func emptyPlot() *plot.Plot {
	p := plot.New()
	p.X.Label.Text = "optimizer step"
	p.Y.Label.Text = "loss (nats per target token)"
	p.X.Tick.Marker, p.Y.Tick.Marker = roundTicks{smallest: 1}, roundTicks{}
	for _, axis := range []*plot.Axis{&p.X, &p.Y} {
		axis.Label.TextStyle.Font = font.Font{Typeface: "Liberation", Variant: "Sans", Size: font.Points(11)}
		axis.Tick.Label.Font = font.Font{Typeface: "Liberation", Variant: "Sans", Size: font.Points(9.5)}
		axis.Label.TextStyle.Color, axis.Tick.Label.Color = colorText, colorText
		axis.Label.Padding = font.Points(5)
		axis.LineStyle.Color, axis.Tick.LineStyle.Color = colorText, colorText
		axis.Tick.Length = font.Points(4)
		axis.Padding = 0
	}
	p.Legend.Top = true
	p.Legend.TextStyle.Font = font.Font{Typeface: "Liberation", Variant: "Sans", Size: font.Points(10)}
	p.Legend.TextStyle.Color = colorText
	p.Legend.Padding = font.Points(4)
	p.Legend.XOffs, p.Legend.YOffs = -font.Points(8), -font.Points(4)
	p.Legend.ThumbnailWidth = font.Points(24)
	grid := plotter.NewGrid()
	grid.Vertical.Color, grid.Horizontal.Color = colorGrid, colorGrid
	p.Add(grid)
	return p
}

// addTraining draws the loss as logged; with enough records it becomes the pale
// background of a smoothed curve.
func addTraining(p *plot.Plot, steps plotter.XYs) error {
	const fewest = 10 // records worth smoothing
	if len(steps) == 0 {
		return nil
	}
	raw, points, err := plotter.NewLinePoints(steps)
	if err != nil {
		return err
	}
	raw.Color, raw.Width = colorSmooth, vg.Points(1.8)
	points.GlyphStyle = draw.GlyphStyle{Color: colorSmooth, Radius: vg.Points(2), Shape: draw.CircleGlyph{}}
	if len(steps) < fewest {
		p.Add(raw, points)
		p.Legend.Add("training ", raw, points)
		return nil
	}
	smooth, err := plotter.NewLine(smoothed(steps))
	if err != nil {
		return err
	}
	raw.Color, raw.Width = colorRaw, vg.Points(0.8)
	smooth.Color, smooth.Width = colorSmooth, vg.Points(1.8)
	p.Add(raw, smooth)
	p.Legend.Add("training, as logged ", raw)
	p.Legend.Add("training, smoothed ", smooth)
	return nil
}

func addEvaluations(p *plot.Plot, evals plotter.XYs) error {
	if len(evals) == 0 {
		return nil
	}
	line, points, err := plotter.NewLinePoints(evals)
	if err != nil {
		return err
	}
	line.Color, line.Width = colorEval, vg.Points(1.2)
	line.Dashes = []vg.Length{vg.Points(4), vg.Points(2.5)}
	points.GlyphStyle = draw.GlyphStyle{Color: colorEval, Radius: vg.Points(3), Shape: draw.CircleGlyph{}}
	p.Add(line, points)
	p.Legend.Add("evaluation ", line, points)
	return nil
}

// legendWidth and legendHeight are the parts of the picture's width and height that the legend takes
// at the upper right.
const legendWidth, legendHeight = 0.3, 0.17

// setRange begins the steps at 0 and leaves some air around the losses, and room
// for the legend where a curve would run through it.
func setRange(p *plot.Plot, curves ...plotter.XYs) {
	all := slices.Concat(curves...)
	p.X.Min, p.X.Max = 0, 1
	low, high := math.Inf(1), math.Inf(-1)
	for _, point := range all {
		p.X.Max = max(p.X.Max, point.X)
		low, high = min(low, point.Y), max(high, point.Y)
	}
	pad := 0.05 * (high - low)
	if pad == 0 {
		pad = max(0.1, 0.1*math.Abs(high))
	}
	p.Y.Min, p.Y.Max = low-pad, high+pad
	if low >= 0 {
		p.Y.Min = max(0, p.Y.Min)
	}
	for _, point := range all {
		if point.X > (1-legendWidth)*p.X.Max {
			p.Y.Max = max(p.Y.Max, p.Y.Min+(point.Y-p.Y.Min)/(1-legendHeight))
		}
	}
}

// roundTicks marks an axis at about ten multiples of 1, 2 or 5 times a power of ten.
type roundTicks struct{ smallest float64 }

// Ticks implements [plot.Ticker].
func (t roundTicks) Ticks(low, high float64) []plot.Tick {
	step := math.Pow(10, math.Floor(math.Log10((high-low)/10)))
	for _, factor := range []float64{2, 2.5, 2} { // 2, 5, 10 times
		if (high-low)/step > 10 {
			step *= factor
		}
	}
	step = max(step, t.smallest)
	decimals := max(0, -int(math.Floor(math.Log10(step)+1e-9)))
	var ticks []plot.Tick
	for i := math.Ceil(low/step - 1e-9); i*step <= high+1e-9*step; i++ {
		label := strconv.FormatFloat(i*step, 'f', decimals, 64)
		if decimals == 0 {
			label = grouped(int(math.Round(i * step)))
		}
		ticks = append(ticks, plot.Tick{Value: i * step, Label: label})
	}
	return ticks
}

// smoothed fits a straight line around each point, the others weighted by a
// Gaussian whose width is a fortieth of the curve, and takes its value there. So
// the curve neither lags behind nor bends at the ends, as a mean would.
func smoothed(curve plotter.XYs) plotter.XYs {
	sigma := max(1.5, float64(len(curve))/40)
	reach := int(3*sigma + 0.5)
	out := make(plotter.XYs, len(curve))
	for i := range curve {
		var w, wx, wxx, wy, wxy float64
		for j := max(0, i-reach); j <= min(len(curve)-1, i+reach); j++ {
			x, y := float64(j-i), curve[j].Y
			weight := math.Exp(-x * x / (2 * sigma * sigma))
			w, wx, wxx = w+weight, wx+weight*x, wxx+weight*x*x
			wy, wxy = wy+weight*y, wxy+weight*x*y
		}
		out[i] = plotter.XY{X: curve[i].X, Y: (wxx*wy - wx*wxy) / (w*wxx - wx*wx)}
	}
	return out
}

// thin replaces runs of points by their means, so that at most n are left.
func thin(curve plotter.XYs, n int) plotter.XYs {
	run := (len(curve) + n - 1) / n
	if run <= 1 {
		return curve
	}
	var out plotter.XYs
	for start := 0; start < len(curve); start += run {
		part := curve[start:min(start+run, len(curve))]
		var mean plotter.XY
		for _, point := range part {
			mean.X += point.X / float64(len(part))
			mean.Y += point.Y / float64(len(part))
		}
		out = append(out, mean)
	}
	return out
}

func writePNG(w io.Writer, p *plot.Plot) error {
	canvas := vgimg.NewWith(vgimg.UseWH(plotWidth, plotHeight), vgimg.UseDPI(plotDPI))
	area := draw.New(canvas)
	margin := vg.Points(10)
	p.Draw(draw.Crop(area, margin, -2*margin, margin, -margin))
	buffered := bufio.NewWriter(w)
	if _, err := (vgimg.PngCanvas{Canvas: canvas}).WriteTo(buffered); err != nil {
		return err
	}
	return buffered.Flush()
}
