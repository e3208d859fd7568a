package train

import (
	"bytes"
	"image/png"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"gonum.org/v1/plot/plotter"
)

// fallingLosses is the log of a made-up training.
func fallingLosses(steps, every int) []LogRecord {
	random := rand.New(rand.NewPCG(1, 2))
	var records []LogRecord
	for step := 1; step <= steps; step++ {
		loss := 2.7 + 2.6*math.Exp(-4*float64(step)/float64(steps))
		records = append(records, LogRecord{Step: step, StepLog: &StepLog{Loss: loss + 0.2*random.NormFloat64()}})
		if every > 0 && step%every == 0 {
			records = append(records, LogRecord{Step: step, EvalLog: &EvalLog{EvalLoss: loss + 0.1}})
		}
	}
	return records
}

func TestPlotLoss(t *testing.T) {
	for name, records := range map[string][]LogRecord{
		"usual":     fallingLosses(150, 25),
		"long":      fallingLosses(20_000, 4000),
		"few":       fallingLosses(5, 0),
		"one":       fallingLosses(1, 1),
		"eval only": {{Step: 10, EvalLog: &EvalLog{EvalLoss: 3}}},
		"equal":     {{Step: 1, StepLog: &StepLog{}}, {Step: 2, StepLog: &StepLog{}}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if keep := os.Getenv("GOPEFT_KEEP_PLOTS"); keep != "" {
				dir = keep
			}
			path := filepath.Join(dir, name+".png")
			require.NoError(t, PlotLoss(path, records))
			content, err := os.ReadFile(path)
			require.NoError(t, err)
			picture, err := png.Decode(bytes.NewReader(content))
			require.NoError(t, err)
			require.Equal(t, 1600, picture.Bounds().Dx())
			require.Equal(t, 1000, picture.Bounds().Dy())
			// Something is drawn in the colour of each curve.
			colors := map[[3]uint32]int{}
			for y := range 1000 {
				for x := range 1600 {
					r, g, b, _ := picture.At(x, y).RGBA()
					colors[[3]uint32{r >> 8, g >> 8, b >> 8}]++
				}
			}
			for _, r := range records {
				if r.StepLog != nil {
					require.Greater(t, colors[[3]uint32{0x1f, 0x5f, 0xa8}], 100)
				}
				if r.EvalLog != nil {
					require.Greater(t, colors[[3]uint32{0xd9, 0x5f, 0x02}], 100)
				}
			}
		})
	}
}

func TestPlotLossErrors(t *testing.T) {
	path := filepath.Join(t.TempDir(), "none.png")
	require.ErrorContains(t, PlotLoss(path, nil), "train: plot loss: the log holds no losses")
	require.NoFileExists(t, path)
	require.ErrorIs(t, PlotLoss(filepath.Join(path, "x.png"), fallingLosses(3, 0)), os.ErrNotExist)
}

func TestSmoothed(t *testing.T) {
	flat, ramp := make(plotter.XYs, 100), make(plotter.XYs, 100)
	for i := range flat {
		flat[i] = plotter.XY{X: float64(i), Y: 3}
		ramp[i] = plotter.XY{X: float64(i), Y: float64(i)}
	}
	for i, point := range smoothed(flat) {
		require.InDelta(t, 3, point.Y, 1e-12)
		require.Equal(t, float64(i), point.X)
	}
	for i, point := range smoothed(ramp) {
		require.InDelta(t, i, point.Y, 1e-9, "a straight line stays where it is")
	}
}

func TestThin(t *testing.T) {
	curve := plotter.XYs{{X: 1, Y: 2}, {X: 2, Y: 4}, {X: 3, Y: 6}, {X: 4, Y: 0}, {X: 5, Y: 1}}
	require.Equal(t, curve, thin(curve, 5))
	require.Equal(t, plotter.XYs{{X: 1.5, Y: 3}, {X: 3.5, Y: 3}, {X: 5, Y: 1}}, thin(curve, 3))
	require.Empty(t, thin(nil, 3))
}

func TestRoundTicks(t *testing.T) {
	for _, c := range []struct {
		ticks     roundTicks
		low, high float64
		want      []string
	}{
		{roundTicks{1}, 0, 150, []string{"0", "20", "40", "60", "80", "100", "120", "140"}},
		{roundTicks{1}, 0, 1, []string{"0", "1"}},
		{roundTicks{1}, 0, 20_000, []string{"0", "2,000", "4,000", "6,000", "8,000", "10,000", "12,000", "14,000", "16,000", "18,000", "20,000"}},
		{roundTicks{}, 2.83, 2.97, []string{"2.84", "2.86", "2.88", "2.90", "2.92", "2.94", "2.96"}},
		{roundTicks{}, 2.2, 5.6, []string{"2.5", "3.0", "3.5", "4.0", "4.5", "5.0", "5.5"}},
		{roundTicks{}, -0.1, 0.1, []string{"-0.10", "-0.08", "-0.06", "-0.04", "-0.02", "0.00", "0.02", "0.04", "0.06", "0.08", "0.10"}},
	} {
		var labels []string
		for _, tick := range c.ticks.Ticks(c.low, c.high) {
			labels = append(labels, tick.Label)
		}
		require.Equal(t, c.want, labels)
	}
}
