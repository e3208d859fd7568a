package train

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
)

// Batches made ahead are those that would have been made in their step: training with them
// ends with the same values, and what was made for a step that is not taken leaves the
// place in the data alone.
func TestAhead(t *testing.T) {
	train := func(last, accumulate int, drop bool) (map[string][]float32, []SamplerState) {
		args := toyArguments(t)
		args.MaxSteps, args.GradientAccumulationSteps = 7, accumulate
		args.SaveStrategy = SaveNo
		pm := toyModel(t)
		var places []SamplerState
		var r *run
		args.Callback = func(e Event) error {
			if e.Kind != EventStep {
				return nil
			}
			places = append(places, r.sampler.State())
			if drop {
				r.dropAhead()
			}
			if e.Step == last {
				require.Equal(t, accumulate == 1 && !drop, r.next != nil && r.next.step == last)
				return ErrStopTraining
			}
			return nil
		}
		trainer, err := NewTrainer(pm, toyData(t, 11, 3), args)
		require.NoError(t, err)
		defer trainer.Close()
		trainer.stepper.config.parts = 1
		r, err = trainer.start()
		require.NoError(t, err)
		require.NoError(t, r.loop(context.Background()))
		r.dropAhead()
		require.Nil(t, r.next)
		require.Equal(t, places[len(places)-1], r.sampler.State())
		require.NoError(t, r.state.publish(pm))
		return valuesOf(t, pm), places
	}
	values, places := train(6, 1, false)
	without, samePlaces := train(6, 1, true)
	require.Equal(t, without, values)
	require.Equal(t, samePlaces, places)
	_, first := train(3, 1, false)
	require.Equal(t, places[:3], first)
	train(3, 2, false)

	sampler := NewSampler(toyData(t, 11, 3), SamplerOptions{BatchSize: 4})
	r := &run{Trainer: &Trainer{args: Arguments{GradientAccumulationSteps: 1}}, sampler: sampler, state: &state{step: 2}}
	done := make(chan struct{})
	close(done)
	r.next = &ahead{step: 3, done: done}
	require.Nil(t, r.takeAhead(), "of another step")
	r.next = &ahead{step: 2, cursor: 1, done: done}
	require.Nil(t, r.takeAhead(), "of another place")
	r.next = &ahead{step: 2, done: done, sampler: Sampler{data: sampler.data, cursor: 1}}
	require.NotNil(t, r.takeAhead())
	require.Equal(t, 1, r.sampler.cursor)
}
