package site

import (
	"context"

	"github.com/gomlx/compute"
	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
	"github.com/gomlx/gomlx/ml/model"
)

// Base is a frozen model that adapters can be attached to.
type Base interface {
	// Backend runs the programs built from this base.
	Backend() compute.Backend
	// Store holds the frozen parameters; programs read it and never change it.
	Store() *model.Store
	// DType is the compute dtype, see [Pass].
	DType() dtypes.DType
	// ModelType is config.json's model_type ("llama"), or "" for a foreign model.
	ModelType() string
	// NameOrPath is where the base was loaded from, "" when it was made in memory.
	NameOrPath() string
	// Modules lists every module that can be a site, in the order of the forward pass.
	Modules() []Module
	// Parameters lists every parameter once, tied ones too, in checkpoint order.
	Parameters() []Parameter
}

// LanguageModel is a base that maps token ids to logits over a vocabulary.
type LanguageModel interface {
	Base
	// Hidden builds the model up to and including the final norm: [batch, length, hidden] in
	// p.DType. Rows of a [Prefix] are left out.
	Hidden(p *Pass, in Tokens) *graph.Node
	// Logits builds the head on hidden states [..., hidden] -> [..., vocabulary].
	Logits(p *Pass, hidden *graph.Node) *graph.Node
	// Head is the module that Logits uses.
	Head() Module
	// VocabSize is the number of logits.
	VocabSize() int
	// MaxPositions is the longest sequence the model was made for.
	MaxPositions() int
	// NewCache returns the shapes of an empty key/value cache, see [Cache].
	CacheShape() CacheShape
}

// Tokens is the input of a language model.
type Tokens struct {
	// IDs are token ids, [batch, length] int32.
	IDs *graph.Node
	// Positions are the positions for rotary or learned embeddings, [batch, length]
	// int32. nil: 0, 1, ... length-1 in every row.
	Positions *graph.Node
	// Segments, [batch, length] int32: a token attends to earlier tokens of its own
	// segment only, and 0 marks padding. nil: every row is one segment; this is
	// also right for rows padded on the right, whose padding nobody reads.
	Segments *graph.Node
	// Types are the token types (segment A or B of an encoder's input), [batch, length]
	// int32. nil: all 0. Models without token types ignore them.
	Types *graph.Node
	// Tasks is the task of each row, [batch] int32, for adapters that know several. nil: none.
	Tasks *graph.Node
	// Cache, if not nil, holds the keys and values of earlier passes and receives
	// those of this one.
	Cache *Cache
}

// Classifier is a base that maps token ids to scores of labels.
type Classifier interface {
	Base
	// Classify builds the scores before softmax in p.DType: [batch, labels], or
	// [batch, length, labels] if PerToken.
	Classify(p *Pass, in Tokens) *graph.Node
	// NumLabels is the number of labels.
	NumLabels() int
	// PerToken is true for a classifier of tokens, false for one of sequences.
	PerToken() bool
	// VocabSize is the number of token ids.
	VocabSize() int
	// MaxPositions is the longest sequence the model was made for.
	MaxPositions() int
}

// Reader is a base that does not hold all its parameters as they are: a quantised one.
type Reader interface {
	// ReadParameter copies a parameter that is held in another form to values, row-major
	// with the shape that Parameters has, and returns the dtype that programs use it in.
	// ok is false for one that is a variable like others.
	ReadParameter(name string, values []float32) (dtype dtypes.DType, ok bool, err error)
}

// Function is a base that is a plain function of tensors: a GoMLX model that knows
// nothing of this library.
type Function interface {
	Base
	// Call builds the model on its inputs.
	Call(p *Pass, inputs []*graph.Node) []*graph.Node
}

// Tasked is a base made for one task.
type Tasked interface {
	// TaskType is the task in peft's terms: "CAUSAL_LM", "SEQ_CLS", "TOKEN_CLS", or "".
	TaskType() string
}

// Replicator is a base that can be built with its layers in another order and number.
type Replicator interface {
	Base
	// Replicate returns a base over the same store whose layers are those of the ranges
	// [from, to), one after the other. Its module paths count the new layers; a module
	// whose path differs from that of its parameters is a Replica of the module at TiedTo,
	// a path that counts the layers of the store. Parameters lists what is used, once.
	Replicate(ranges [][2]int) (Base, error)
}

// CacheShape says what a key/value cache holds.
type CacheShape struct {
	Layers, KVHeads, HeadDim int
}

// Cache is a key/value cache of fixed length while a graph is built. Slots are
// shared by all rows: the pass writes its tokens to slots Index, Index+1, ...;
// rows of unequal length are padded on the left and start at slot Starts[row]. With a
// [Prefix] its virtual tokens have the first slots of every row.
type Cache struct {
	// Keys and Values, per layer, [batch, slots, kvHeads, headDim]. A pass replaces
	// them by the updated nodes. For the first pass (Index nil) they are nil, and
	// the pass leaves its own keys and values, [batch, virtual tokens + length, ...].
	Keys, Values []*graph.Node
	// Index is the slot of the pass's first token, int32 scalar.
	Index *graph.Node
	// Starts is each row's first used slot, [batch] int32, counted from the end of the
	// virtual tokens.
	Starts *graph.Node
	// Long is true when the longest row is, or will be, longer than the length from
	// which on the model turns heads otherwise (LongRoPE). A cache is of one kind
	// throughout: what was read as short must be read again. Models without such a
	// length ignore it. Without a cache, and in a first pass that leaves it false, the
	// positions of the pass decide.
	Long bool
}

// View is a base seen through a selection of adapters: what generation and
// evaluation run. A plain base is a view with no adapters.
type View interface {
	// LanguageModel is the base below.
	LanguageModel() LanguageModel
	// Arguments are the tensors that a program needs besides its own inputs: the
	// adapters' values. Their number and shapes depend only on Structure.
	Arguments() ([]*tensors.Tensor, error)
	// Hook binds the arguments' nodes in a graph under construction; nil without adapters.
	Hook(arguments []*graph.Node) Hook
	// Structure identifies the program: views with equal structures over one base
	// share compiled programs, those of training excepted.
	Structure() string
}

// Untier is an [Exporter] that can also write itself with its head untied.
type Untier interface {
	Exporter
	// ExportUntied is Export of the same model whose head no longer shares its weight but
	// has one of its own: edit sees that under the name that it has then, with the values
	// that were shared. It is an error if the model cannot be that.
	ExportUntied(ctx context.Context, dir string, edit func(p Parameter, values []float32) (changed bool, err error)) error
}

// RowView is a view that treats the rows of a batch differently.
type RowView interface {
	View
	// Rows is the number of rows that a batch must have.
	Rows() int
	// Pad returns the view for batches of more rows, which do what the first does.
	Pad(rows int) RowView
}

// Prefixed is a view that may put virtual tokens before those of every row.
type Prefixed interface {
	// VirtualTokens is how many positions they take, see [Prefix].
	VirtualTokens() int
}

// Multitask is a view that may ask for the task of each row, see [Tokens].Tasks.
type Multitask interface {
	// NumTasks is the number of tasks that there are, from 0 on; 0 if rows need none.
	NumTasks() int
}

// Exporter is a base that can write itself as a checkpoint in its own format.
type Exporter interface {
	// Export writes the base to the folder dir, tensor by tensor. edit sees each
	// tensor as row-major float32 values, may change them in place, and reports
	// whether it did; unchanged tensors are copied as they are. Changed values are
	// rounded once to the stored dtype.
	Export(ctx context.Context, dir string, edit func(p Parameter, values []float32) (changed bool, err error)) error
}
