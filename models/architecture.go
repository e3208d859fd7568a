package models

import (
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/gomlx/gomlx/core/graph"

	"github.com/gopeft/gopeft/site"
)

// Architecture is what one config.json describes: names and shapes of the
// parameters, and the forward pass. It holds no weights.
type Architecture interface {
	// Config is the part of the configuration that all families share.
	Config() Config
	// Modules lists the modules that can be sites, in the order of the forward pass.
	Modules() []site.Module
	// Parameters lists every parameter of the checkpoint once.
	Parameters() []site.Parameter
	// Ignorable reports whether a checkpoint tensor that is no parameter is known
	// to be harmless, such as a stored buffer that the model computes itself.
	Ignorable(tensor string) bool
	// Layers lists the blocks in the order of the forward pass.
	Layers() []site.Layer
	// CacheShape says what a key/value cache holds.
	CacheShape() site.CacheShape
	// Hidden builds the model up to and including the final norm, see [site.LanguageModel].
	Hidden(b *Blocks, in site.Tokens) *graph.Node
	// Logits builds the head, see [site.LanguageModel].
	Logits(b *Blocks, hidden *graph.Node) *graph.Node
}

// Config holds what users of a model read from its config.json whatever its
// family. The family's own options stay with its [Architecture].
type Config struct {
	// ModelType is model_type, "llama".
	ModelType string
	// VocabSize is the number of rows of the embedding and of logits.
	VocabSize int
	// HiddenSize is the width of the residual stream.
	HiddenSize int
	// NumLayers is the number of transformer blocks.
	NumLayers int
	// MaxPositions is the longest sequence the model was made for.
	MaxPositions int
	// InitializerRange is the standard deviation of freshly initialised matrices.
	InitializerRange float64
	// TieWordEmbeddings is true when the head uses the embedding's weight.
	TieWordEmbeddings bool
	// BOSTokenID, PadTokenID are -1 when the configuration names none.
	BOSTokenID, PadTokenID int
	// EOSTokenIDs end a generated text; generation_config.json, where it names any,
	// overrides config.json.
	EOSTokenIDs []int
	// JSON is config.json as it was read.
	JSON []byte
}

// families is written by [Register] during initialisation only.
var (
	familiesMu sync.RWMutex
	families   = map[string]func(configJSON []byte) (Architecture, error){}
)

// Register makes a model family known under a model_type. It is called from
// init functions and panics when the type is taken.
func Register(modelType string, build func(configJSON []byte) (Architecture, error)) {
	familiesMu.Lock()
	defer familiesMu.Unlock()
	if _, taken := families[modelType]; taken {
		panic(fmt.Sprintf("models: model_type %q registered twice", modelType))
	}
	families[modelType] = build
}

// ModelTypes lists the registered model types in alphabetical order.
func ModelTypes() []string {
	familiesMu.RLock()
	defer familiesMu.RUnlock()
	names := make([]string, 0, len(families))
	for name := range families {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// NewArchitecture reads a config.json: its model_type picks the family. Every
// missing or wrongly typed field, and every option that changes the mathematics
// and is not supported, is part of the error.
func NewArchitecture(configJSON []byte) (Architecture, error) {
	f, err := newFields(configJSON)
	if err != nil {
		return nil, err
	}
	modelType := f.text("model_type")
	if err := f.err(); err != nil {
		return nil, err
	}
	familiesMu.RLock()
	build, known := families[modelType]
	familiesMu.RUnlock()
	if !known {
		return nil, fmt.Errorf("models: config.json: model_type %q is not supported; supported are %s",
			modelType, strings.Join(ModelTypes(), ", "))
	}
	return build(configJSON)
}
