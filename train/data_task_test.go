package train

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// Tasks of a file come with the batches, whole and in pieces; other data have none.
func TestTasks(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data.jsonl")
	content := `{"text": "abcd", "task_id": 2}
{"text": "efghij", "task_id": 0}
{"text": "kl", "task_id": 1}
`
	require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
	data, err := LoadJSONL(path, wordTokenizer{}, DataOptions{TaskField: "task_id", MaxLength: 5})
	require.NoError(t, err)
	require.EqualValues(t, 2, *data.Example(0).Task)
	require.EqualValues(t, 0, *data.Example(1).Task) // it was cut
	batch, ok := NewSampler(data, SamplerOptions{BatchSize: 4}).Next()
	require.True(t, ok)
	require.Equal(t, []int32{2, 0, 1, 0}, batch.Tasks)
	require.NoError(t, batch.validate())
	pieces := batch.split(2, 1)
	require.Equal(t, []int32{2, 0}, pieces[0].Tasks)
	require.Equal(t, []int32{1, 0}, pieces[1].Tasks)
	require.True(t, variantOf(batch).tasks)
	tensors := batchTensors(batch)
	require.Equal(t, []int32{2, 0, 1, 0}, tensors[len(tensors)-1].Value())
	batch.Tasks = batch.Tasks[:1]
	require.ErrorContains(t, batch.validate(), "batch of 4 rows: 1 tasks")

	_, err = data.Pack(16)
	require.ErrorContains(t, err, "examples with tasks cannot be packed")
	plain, err := LoadJSONL(path, wordTokenizer{}, DataOptions{MaxLength: 5})
	require.NoError(t, err)
	batch, _ = NewSampler(plain, SamplerOptions{BatchSize: 4}).Next()
	require.Nil(t, batch.Tasks)
	require.NotEqual(t, plain.hash(), data.hash())
}

func TestTaskErrors(t *testing.T) {
	for content, want := range map[string]string{
		`{"text": "ab"}`:                   `no field "task_id" among "text"`,
		`{"text": "ab", "task_id": "1"}`:   `field "task_id": want an integer of 0 or more, got "1"`,
		`{"text": "ab", "task_id": -1}`:    `want an integer of 0 or more, got -1`,
		`{"text": "ab", "task_id": 1.5}`:   `want an integer of 0 or more, got 1.5`,
		`{"text": "ab", "task_id": 1e400}`: `want an integer of 0 or more`,
	} {
		path := filepath.Join(t.TempDir(), "data.jsonl")
		require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
		_, err := LoadJSONL(path, wordTokenizer{}, DataOptions{TaskField: "task_id"})
		require.ErrorContains(t, err, want)
		require.ErrorContains(t, err, "data.jsonl:1")
	}
	ids := []int32{1, 2, 3}
	_, err := NewDataset([]Example{{IDs: ids, Labels: ids, Task: new(int32(1))}, {IDs: ids, Labels: ids}})
	require.ErrorContains(t, err, "example 1: of it and the first only one has a task")
	_, err = NewDataset([]Example{{IDs: ids, Labels: ids, Task: new(int32(-1))}})
	require.ErrorContains(t, err, "task -1, want 0 or more")
	path := filepath.Join(t.TempDir(), "data.txt")
	require.NoError(t, os.WriteFile(path, []byte("text"), 0o600))
	_, err = LoadFile(path, wordTokenizer{}, DataOptions{TaskField: "task_id"})
	require.ErrorContains(t, err, "plain text has no fields")
}

// Padding leaves positions that virtual tokens need.
func TestBucketsWithin(t *testing.T) {
	var examples []Example
	for _, n := range []int{3, 70, 33} {
		ids := make([]int32, n)
		examples = append(examples, Example{IDs: ids, Labels: ids})
	}
	data, err := NewDataset(examples)
	require.NoError(t, err)
	require.Equal(t, []int{72}, data.buckets)
	require.Same(t, data, data.within(72))
	cut := data.within(71)
	require.Equal(t, []int{71}, cut.buckets)
	require.NotEqual(t, data.hash(), cut.hash())
	require.Equal(t, []int{72}, data.buckets)
	require.Equal(t, []int{70}, data.within(5).buckets)
}
