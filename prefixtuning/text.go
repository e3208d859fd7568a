package prefixtuning

import (
	"errors"
	"fmt"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
	"github.com/gomlx/gomlx/ml/model"

	"github.com/gopeft/gopeft/internal/graphx"
	"github.com/gopeft/gopeft/models/tokenizer"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// SetText starts the prefix of the named adapter, one of prefix tuning, at the keys and values
// that the base computes for a text, special tokens included: before training the model then
// goes on from that text. See [SetTokens]. The tokenizer is the base's.
func SetText(pm *peft.PeftModel, adapter, text string, tok *tokenizer.Tokenizer) error {
	if tok == nil {
		return fmt.Errorf("prefix_tuning: adapter %q: prefix text without tokenizer", adapter)
	}
	return SetTokens(pm, adapter, tok.Encode(text, tokenizer.EncodeOptions{AddSpecialTokens: true}))
}

// SetTokens is [SetText] for token ids: the first of them count, as many as there are virtual
// tokens; fewer are an error. A prefix with a network has no such start.
func SetTokens(pm *peft.PeftModel, adapter string, ids []int32) error {
	if err := setTokens(pm, adapter, ids); err != nil {
		return fmt.Errorf("prefix_tuning: adapter %q: %w", adapter, err)
	}
	return nil
}

func setTokens(pm *peft.PeftModel, adapter string, ids []int32) error {
	parts, err := pm.Parts(adapter)
	if err != nil {
		return err
	}
	var a *prefix
	for _, part := range parts {
		if p, ok := part.(*prefix); ok {
			a = p
		}
	}
	if a == nil {
		return errors.New("it has no prefix of keys and values")
	}
	if _, ok := a.encoder.(table); !ok {
		return errors.New("prefix_projection: a network cannot be made to give the keys and values of a text")
	}
	lm, ok := pm.Base().(site.LanguageModel)
	if !ok || lm.CacheShape().Layers == 0 {
		return errors.New("the base does not read from left to right: a text's keys and values depend on what follows")
	}
	n := a.config.NumVirtualTokens
	if len(ids) < n {
		return fmt.Errorf("the text has %d tokens, want at least the %d virtual ones", len(ids), n)
	}
	for i, id := range ids[:n] {
		if id < 0 || int(id) >= lm.VocabSize() {
			return fmt.Errorf("token %d of the text is %d, want 0 to %d", i, id, lm.VocabSize()-1)
		}
	}
	rows, err := keysAndValues(lm, ids[:n])
	if err != nil {
		return err
	}
	values, err := pm.TensorValues(adapter)
	if err != nil {
		return err
	}
	values[flatKey] = rows
	layout, err := pm.Layout(adapter)
	if err != nil {
		return err
	}
	arguments, err := layout.FromHost(values)
	if err != nil {
		return err
	}
	return pm.SetValues(adapter, arguments)
}

// keysAndValues runs the base on one row of tokens and returns what its cache holds then, in
// the order of [prefix.Prefix].
func keysAndValues(lm site.LanguageModel, ids []int32) (rows []float32, err error) {
	err = graphx.Try(func() error {
		exec, err := model.NewExec(lm.Backend(), lm.Store(), func(_ *model.Scope, in []*graph.Node) []*graph.Node {
			cache := &site.Cache{}
			lm.Hidden(&site.Pass{Graph: in[0].Graph(), DType: lm.DType()}, site.Tokens{IDs: in[0], Cache: cache})
			var all []*graph.Node
			for i := range cache.Keys {
				for _, x := range []*graph.Node{cache.Keys[i], cache.Values[i]} { // [1, tokens, heads, size]
					all = append(all, graph.Reshape(x, len(ids), 1, -1))
				}
			}
			return []*graph.Node{graph.ConvertDType(graph.Concatenate(all, 1), dtypes.Float32)}
		})
		if err != nil {
			return err
		}
		defer exec.Finalize()
		out, err := exec.Exec(tensors.FromFlatDataAndDimensions(ids, 1, len(ids)))
		if err != nil {
			return err
		}
		rows, err = tensors.CopyFlatData[float32](out[0])
		return errors.Join(err, out[0].FinalizeAll())
	})
	return rows, err
}
