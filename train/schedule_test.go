package train

import (
	"encoding/json"
	"fmt"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

// The golden file is written by internal/golden/schedules.py with transformers.
func TestScheduleAgainstTransformers(t *testing.T) {
	content, err := os.ReadFile("testdata/schedules.json")
	require.NoError(t, err)
	var cases []struct {
		Name          string
		Warmup, Total int
		Base          float64
		Rates         []float64
	}
	require.NoError(t, json.Unmarshal(content, &cases))
	require.Len(t, cases, 8)
	for _, c := range cases {
		t.Run(fmt.Sprintf("%s %d of %d", c.Name, c.Warmup, c.Total), func(t *testing.T) {
			s := Schedule{Warmup: c.Warmup, Total: c.Total}
			require.NoError(t, s.Type.UnmarshalText([]byte(c.Name)))
			require.NoError(t, s.Validate())
			require.Len(t, c.Rates, c.Total+1)
			for step, want := range c.Rates {
				// Both sides make a handful of float64 operations, in another order.
				require.InDelta(t, want, s.LR(step, c.Base), 1e-15*c.Base*10, "step %d", step)
			}
			require.Equal(t, s.LR(c.Total, c.Base), s.LR(c.Total+50, c.Base), "after the end")
		})
	}
}

func TestScheduleValidate(t *testing.T) {
	for _, c := range []struct {
		schedule Schedule
		want     string
	}{
		{Schedule{Total: 10}, ""},
		{Schedule{Type: SchedulerConstant}, ""},
		{Schedule{Type: SchedulerCosine, Warmup: 10, Total: 10}, ""},
		{Schedule{}, "linear over 0 steps"},
		{Schedule{Type: 7, Total: 10}, "unknown type 7"},
		{Schedule{Type: -1, Total: 10}, "unknown type -1"},
		{Schedule{Warmup: -1, Total: 10}, "-1 warm-up steps"},
		{Schedule{Warmup: 11, Total: 10}, "11 warm-up steps in a training of 10"},
	} {
		err := c.schedule.Validate()
		if c.want == "" {
			require.NoError(t, err)
		} else {
			require.ErrorContains(t, err, c.want)
		}
	}
}

func TestSchedulerTypeText(t *testing.T) {
	for _, want := range []SchedulerType{SchedulerLinear, SchedulerCosine, SchedulerConstant} {
		text, err := want.MarshalText()
		require.NoError(t, err)
		var got SchedulerType
		require.NoError(t, got.UnmarshalText(text))
		require.Equal(t, want, got)
	}
	var s SchedulerType
	require.ErrorContains(t, s.UnmarshalText([]byte("polynomial")), `scheduler "polynomial", want linear`)
	_, err := SchedulerType(9).MarshalText()
	require.Error(t, err)
	require.Equal(t, "SchedulerType(9)", SchedulerType(9).String())
}

func ExampleSchedule() {
	s := Schedule{Type: SchedulerCosine, Warmup: 2, Total: 6}
	for step := range 6 {
		fmt.Printf("%.6f ", s.LR(step, 2e-4))
	}
	// Output: 0.000000 0.000100 0.000200 0.000171 0.000100 0.000029
}
