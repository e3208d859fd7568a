package train

import (
	"testing"

	"github.com/gomlx/gomlx/core/graph"
	"github.com/stretchr/testify/require"
)

// pairLoss relates rows: the squared sum of the means of the hidden states of each
// group of rows; 0 stands for the whole batch.
type pairLoss struct{ rows int }

func (l pairLoss) RowsTogether() int { return l.rows }

func (l pairLoss) Loss(r *Run, b BatchNodes) (sum, count *graph.Node) {
	hidden := r.Model.Hidden(r.Pass, b.Tokens)
	rows, n := hidden.Shape().Dim(0), l.rows
	if n == 0 {
		n = rows
	}
	means := graph.Reshape(graph.ReduceMean(hidden, 1), rows/n, n, -1) // [group, row, feature]
	related := graph.ReduceAllSum(graph.Square(graph.ReduceSum(means, 1)))
	_, count = CausalLM{}.Loss(r, b)
	return related, count
}

func TestRowsTogether(t *testing.T) {
	b := toyBatch(12, 8, 1)
	pm := newToyPeft(t, false, toyConfig{Targets: mixTargets})
	for _, c := range []struct{ rows, pieces int }{{0, 1}, {1, 4}, {2, 4}, {4, 3}, {6, 2}, {12, 1}, {24, 1}} {
		pieces := b.split(4, c.rows)
		require.Len(t, pieces, c.pieces, "%d rows", c.rows)
		next := 0
		for _, piece := range pieces {
			require.Equal(t, next, piece.RowOffset)
			if c.rows > 0 && c.rows <= b.Rows {
				require.Zero(t, piece.Rows%c.rows)
			}
			next += piece.Rows
		}
		require.Equal(t, b.Rows, next)
		if c.rows == 24 {
			continue
		}
		whole, one := newTestStepper(t, pm, stepConfig{loss: pairLoss{c.rows}, parts: 1})
		cut, other := newTestStepper(t, pm, stepConfig{loss: pairLoss{c.rows}, parts: 4})
		before, err := whole.evaluate(one.values, b)
		require.NoError(t, err)
		after, err := cut.evaluate(other.values, b)
		require.NoError(t, err)
		require.InEpsilon(t, before.sum, after.sum, 1e-5)
		want, err := whole.step(t.Context(), one, []Batch{b}, 1e-2)
		require.NoError(t, err)
		got, err := cut.step(t.Context(), other, []Batch{b}, 1e-2)
		require.NoError(t, err)
		require.InEpsilon(t, want.loss, got.loss, 1e-5)
		require.InEpsilon(t, want.gradNorm, got.gradNorm, 1e-5)
	}
}

func TestRowGroupsAreChecked(t *testing.T) {
	for _, c := range []struct {
		name   string
		rows   int
		change func(*Arguments)
		want   string
	}{
		{"negative", -1, nil, "train.pairLoss keeps -1 rows together, want 0 or more"},
		{"training", 2, nil, "keeps 2 rows together, but batches have 3 rows in training and 8 in evaluation"},
		{"evaluation", 3, nil, "3 rows in training and 8 in evaluation"},
		{"shuffled", 2, func(a *Arguments) { a.PerDeviceTrainBatchSize = 4 }, "set NoShuffle"},
		{"sorted", 2, func(a *Arguments) { a.PerDeviceTrainBatchSize, a.NoShuffle, a.GroupByLength = 4, true, true }, "not GroupByLength"},
		{"right", 2, func(a *Arguments) { a.PerDeviceTrainBatchSize, a.NoShuffle = 4, true }, ""},
		{"whole batches", 0, nil, ""},
	} {
		args := toyArguments(t)
		args.Loss = pairLoss{c.rows}
		if c.change != nil {
			c.change(&args)
		}
		_, err := NewTrainer(toyModel(t), toyData(t, 22, 1), args)
		if c.want == "" {
			require.NoError(t, err, c.name)
		} else {
			require.ErrorContains(t, err, c.want, c.name)
		}
	}
}
