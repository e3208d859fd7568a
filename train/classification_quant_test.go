package train

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/quant"
)

// A classifier that is quantised while it is loaded trains as the one with the decoded
// weights does, in every family, and merging and export go the way of language models.
func TestQuantisedClassifierTrains(t *testing.T) {
	for family, targets := range map[string]peft.Targets{
		"bert": peft.Modules("query", "value"), "roberta": peft.AllLinear, "distilbert": peft.Modules("q_lin", "ffn.lin1"), "albert": peft.AllLinear,
	} {
		t.Run(family, func(t *testing.T) {
			schemes := map[string]quant.Scheme{"nf4": quant.NF4{DoubleQuant: true}}
			if family == "bert" {
				schemes["int8"] = quant.INT8{}
			}
			for name, scheme := range schemes {
				t.Run(name, func(t *testing.T) { testQuantisedClassifier(t, family, targets, scheme) })
			}
		})
	}
}

func testQuantisedClassifier(t *testing.T, family string, targets peft.Targets, scheme quant.Scheme) {
	load := func(dir string, scheme quant.Scheme) *models.Classifier {
		o := float32Classifier(t, models.ClassifierOptions{})
		o.Quantization = scheme
		c, err := models.LoadClassifier(t.Context(), dir, o)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, c.Close()) })
		return c
	}
	quantised, decodedDir := load(filepath.Join(fixtures, "encoders", family+"_sequence"), scheme), t.TempDir()
	require.NoError(t, quantised.Export(t.Context(), decodedDir, nil))
	config := lora.LoraConfig{R: 2, LoraAlpha: 4, TargetModules: targets, InitLoraWeights: lora.InitRandom}
	data := parityData(t, 16, LabelRow, 2)
	data.classes = nil // the fixtures have other names
	run := func(c *models.Classifier) (*peft.PeftModel, float64) {
		pm, err := peft.GetPeftModel(c, config, peft.Options{Seed: 4})
		require.NoError(t, err)
		args := classArguments(t)
		args.MaxSteps, args.LearningRate = 4, 1e-3
		trainer, err := NewTrainer(pm, data, args)
		require.NoError(t, err)
		defer trainer.Close()
		result, err := trainer.Train(t.Context())
		require.NoError(t, err)
		return pm, result.TrainingLoss
	}
	measure := func(pm *peft.PeftModel) float64 {
		trainer, err := NewTrainer(pm, data, classArguments(t))
		require.NoError(t, err)
		defer trainer.Close()
		e, err := trainer.Measure(t.Context(), data)
		require.NoError(t, err)
		return e.Loss
	}
	_, want := run(load(decodedDir, nil))
	pm, got := run(quantised)
	require.InEpsilon(t, want, got, 1e-4)
	trained := measure(pm)

	dir := filepath.Join(t.TempDir(), "adapter")
	require.NoError(t, pm.SavePretrained(dir))
	again, err := peft.LoadAdapter(load(filepath.Join(fixtures, "encoders", family+"_sequence"), scheme), dir)
	require.NoError(t, err)
	require.InEpsilon(t, trained, measure(again), 1e-6)

	merged := t.TempDir()
	_, err = pm.Merge(t.Context(), merged)
	require.NoError(t, err)
	config.InitLoraWeights = lora.InitDefault
	identity, err := peft.GetPeftModel(load(merged, nil), config)
	require.NoError(t, err)
	require.InEpsilon(t, trained, measure(identity), 1e-5)
}
