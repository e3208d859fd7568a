package prefixtuning_test

import (
	"testing"

	"github.com/gopeft/gopeft/peft/pefttest"
	"github.com/gopeft/gopeft/prefixtuning"
)

func TestConformance(t *testing.T) {
	const n = 4
	for name, s := range map[string]pefttest.Suite{
		"prefix":            {Config: prefixtuning.PrefixTuningConfig{NumVirtualTokens: n}},
		"prefix, zero":      {Config: prefixtuning.PrefixTuningConfig{NumVirtualTokens: n, InitWeights: prefixtuning.InitZero}, Family: "gpt2"},
		"prefix projection": {Config: prefixtuning.PrefixTuningConfig{NumVirtualTokens: n, PrefixProjection: true, EncoderHiddenSize: 10}, Beside: true},
		"prompt":            {Config: prefixtuning.PromptTuningConfig{NumVirtualTokens: n}, AnyModel: true},
		"prompt of the vocabulary": {
			Config: prefixtuning.PromptTuningConfig{NumVirtualTokens: n, PromptTuningInit: prefixtuning.InitSampleVocab}, Family: "gemma2", AnyModel: true},
		"P-tuning, MLP": {Config: prefixtuning.PromptEncoderConfig{NumVirtualTokens: n, EncoderHiddenSize: 10}, Beside: true, AnyModel: true},
		"P-tuning, LSTM": {
			Config: prefixtuning.PromptEncoderConfig{NumVirtualTokens: n, EncoderReparameterizationType: prefixtuning.LSTM, EncoderHiddenSize: 6, EncoderDropout: 0.1},
			Beside: true, AnyModel: true, Family: "qwen2"},
		"multitask": {Config: prefixtuning.MultitaskPromptTuningConfig{NumVirtualTokens: n, NumRanks: 2}, AnyModel: true, Noise: 0.5},
	} {
		t.Run(name, func(t *testing.T) {
			s.NotIdentity, s.NotMergeable, s.Alone = true, true, true
			pefttest.Run(t, s)
		})
	}
}
