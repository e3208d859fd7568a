package main

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/gopeft/gopeft/internal/backend"
	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/train"
)

// memoryConfig is a model of 13 million parameters: large enough that weights and
// optimizer outweigh the activations of a small batch.
const memoryConfig = `{"model_type": "llama", "vocab_size": 4096, "hidden_size": 384, "intermediate_size": 1024,
	"num_hidden_layers": 6, "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 256,
	"rms_norm_eps": 1e-5, "hidden_act": "silu", "rope_theta": 10000.0, "tie_word_embeddings": true}`

// footprint is what training one method takes, in bytes but for trainable.
type footprint struct {
	trainable            int64
	gradients, optimizer int64
	peak, disk           int64
}

// BenchmarkMemory compares full fine-tuning with LoRA on the same model and batch:
//
//	go test -bench=Memory -benchtime=1x ./examples/benchmark
//
// peak is the compiled step's inputs and temporaries on XLA, by the compiler's own
// analysis; on the Go backend it is the largest size of the heap during two steps,
// sampled each millisecond and so approximate.
func BenchmarkMemory(b *testing.B) {
	for _, method := range []settings{
		{Full: true, Batch: 2, Length: 64},
		{Rank: 8, Targets: "all-linear", Batch: 2, Length: 64},
		{Rank: 8, Targets: "q_proj,v_proj", Batch: 2, Length: 64},
	} {
		name := "full"
		if !method.Full {
			name = fmt.Sprintf("LoRA-r%d-%s", method.Rank, method.Targets)
		}
		b.Run(name, func(b *testing.B) {
			var f footprint
			for b.Loop() {
				var err error
				if f, err = takeFootprint(b, method); err != nil {
					b.Fatal(err)
				}
			}
			const mb = 1e6
			b.ReportMetric(float64(f.trainable)/mb, "trainable-M")
			b.ReportMetric(float64(f.gradients)/mb, "gradient-MB")
			b.ReportMetric(float64(f.optimizer)/mb, "optimizer-MB")
			b.ReportMetric(float64(f.peak)/mb, "peak-MB")
			b.ReportMetric(float64(f.disk)/mb, "disk-MB")
		})
	}
}

// TestFootprint holds the order that BenchmarkMemory shows: LoRA needs less of everything.
func TestFootprint(t *testing.T) {
	if testing.Short() {
		t.Skip("trains a model of 13 M parameters")
	}
	full, err := takeFootprint(t, settings{Full: true, Batch: 1, Length: 32})
	if err != nil {
		t.Fatal(err)
	}
	small, err := takeFootprint(t, settings{Rank: 8, Targets: "q_proj,v_proj", Batch: 1, Length: 32})
	if err != nil {
		t.Fatal(err)
	}
	for name, pair := range map[string][2]int64{
		"trainable": {small.trainable, full.trainable}, "gradients": {small.gradients, full.gradients},
		"optimizer": {small.optimizer, full.optimizer}, "disk": {small.disk, full.disk}, "peak": {small.peak, full.peak},
	} {
		if pair[0] <= 0 || pair[0] >= pair[1] {
			t.Errorf("%s: LoRA %d, full %d: want LoRA's below", name, pair[0], pair[1])
		}
	}
}

func takeFootprint(tb testing.TB, s settings) (footprint, error) {
	ctx := context.Background()
	model, err := models.New(ctx, []byte(memoryConfig), 1, models.Options{On: backendtest.Open(tb)})
	if err != nil {
		return footprint{}, err
	}
	defer model.Close()
	pm, err := peft.GetPeftModel(model, s.method())
	if err != nil {
		return footprint{}, err
	}
	data, err := randomTokens(s, model.VocabSize())
	if err != nil {
		return footprint{}, err
	}
	dir := tb.TempDir()
	trainer, err := train.NewTrainer(pm, data, train.Arguments{OutputDir: filepath.Join(dir, "run"), MaxSteps: 2,
		PerDeviceTrainBatchSize: s.Batch, SaveStrategy: train.SaveNo, Quiet: true})
	if err != nil {
		return footprint{}, err
	}
	defer trainer.Close()
	f := footprint{trainable: pm.TrainableParameters().Trainable}
	f.gradients, f.optimizer = 4*f.trainable, 8*f.trainable // float32: a gradient; two moments
	heap, err := backend.GoPeak(func() error {
		_, err := trainer.Train(ctx)
		return err
	})
	if err != nil {
		return f, err
	}
	f.peak = int64(heap)
	if !backend.IsGo(model.Backend()) {
		m, err := trainer.ProgramMemory()
		if err != nil {
			return f, err
		}
		f.peak = m.Inputs + m.Temporaries
	}
	saved := filepath.Join(dir, "saved")
	if s.Full {
		_, err = pm.Merge(ctx, saved)
	} else {
		err = pm.SavePretrained(saved)
	}
	if err != nil {
		return f, err
	}
	f.disk, err = folderSize(saved)
	return f, err
}

func folderSize(dir string) (total int64, err error) {
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := os.Stat(path)
		if err == nil {
			total += info.Size()
		}
		return err
	})
	return total, err
}
