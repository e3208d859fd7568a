package models_test

import (
	"context"
	"fmt"
	"log"

	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/ml/model"

	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/site"
)

func ExampleLoad() {
	m, err := models.Load(context.Background(), "../internal/golden/testdata/families/llama", models.Options{Backend: "go"})
	if err != nil {
		log.Fatal(err)
	}
	defer m.Close()
	fmt.Println(m.ModelType(), len(m.Parameters()), "tensors, vocabulary", m.VocabSize())

	// A forward pass is a graph over the model's Store.
	next, err := model.NewExec(m.Backend(), m.Store(), func(_ *model.Scope, ids *graph.Node) *graph.Node {
		p := &site.Pass{Graph: ids.Graph(), DType: m.DType()}
		logits := m.Logits(p, m.Hidden(p, site.Tokens{IDs: ids}))
		return graph.ArgMax(graph.SliceAxis(logits, 1, graph.AxisElem(-1)), -1)
	})
	if err != nil {
		log.Fatal(err)
	}
	out, err := next.Exec([][]int32{{5, 9, 33, 7}})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("next token:", out[0].Value())
	// Output:
	// llama 21 tensors, vocabulary 64
	// next token: [[53]]
}

func ExampleNew() {
	config := []byte(`{"model_type": "llama", "vocab_size": 100, "hidden_size": 16, "intermediate_size": 32,
		"num_hidden_layers": 2, "num_attention_heads": 2, "rms_norm_eps": 1e-6, "tie_word_embeddings": true}`)
	m, err := models.New(context.Background(), config, 42, models.Options{Backend: "go"})
	if err != nil {
		log.Fatal(err)
	}
	defer m.Close()
	for _, module := range m.Modules()[:3] {
		fmt.Println(module.Kind, module.Path, module.In, "->", module.Out)
	}
	// Output:
	// embedding model.embed_tokens 100 -> 16
	// norm model.layers.0.input_layernorm 16 -> 16
	// linear model.layers.0.self_attn.q_proj 16 -> 16
}
