package models

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	. "github.com/gomlx/gomlx/core/graph"

	"github.com/gopeft/gopeft/site"
)

// encoder is a family of bidirectional transformers in the manner of BERT
// (Devlin et al. 2018, arXiv:1810.04805): a trunk under several heads.
type encoder interface {
	Renamer
	options() *encoderOptions
	// trunk lists the modules from the embeddings to the last block.
	trunk() []site.Module
	// Layers lists the blocks in the order of the forward pass.
	Layers() []site.Layer
	// encode builds the trunk: [batch, length, hidden].
	encode(b *Blocks, in site.Tokens) *Node
	// maskedHead gives logits over the vocabulary, [..., vocabulary].
	maskedHead() head
	// sequenceHead gives the scores of a whole sequence: [batch, length, hidden] -> [batch, labels].
	sequenceHead(labels int) head
	// otherTasks are the beginnings of the names of further heads that checkpoints of the
	// family come with.
	otherTasks() []string
}

// head is what stands on a trunk.
type head struct {
	modules []site.Module
	// bare are parameters of no module.
	bare []site.Parameter
	// spare are other names of a parameter, which a checkpoint may have besides.
	spare []string
	// pooling are the modules that belong to the checkpoint's trunk, where it has them.
	pooling []site.Module
	build   func(b *Blocks, hidden *Node) *Node
}

func (h head) all() []site.Module { return slices.Concat(h.pooling, h.modules) }

func (h head) parameters() []site.Parameter { return append(parametersOf(h.all()), h.bare...) }

// tokenHead gives the scores of each token; all families have the same.
func tokenHead(o *encoderOptions, labels int) head {
	classifier := classifierModule("classifier", o.config.HiddenSize, labels)
	return head{modules: []site.Module{classifier}, build: func(b *Blocks, x *Node) *Node {
		return b.Linear(classifier.Path, b.Dropout("classifier.dropout", x, o.tokenDropout))
	}}
}

func classifierModule(path string, hidden, labels int) site.Module {
	m := biasedLinear(path, hidden, labels)
	m.Head = true
	return m
}

func biasedLinear(path string, in, out int) site.Module {
	return site.Module{Path: path, Kind: site.Linear, In: in, Out: out, Bias: true}
}

func biasedNorm(path string, size int) site.Module {
	return site.Module{Path: path, Kind: site.Norm, In: size, Out: size, Bias: true}
}

// encoderOptions is what the families have in common.
type encoderOptions struct {
	config       Config
	prefix       string // of the trunk's names, "bert"
	class        string // of transformers' class names, "Bert"
	intermediate int
	heads        int
	normEps      float64
	act          activation
	types        int // token types, 0: none
	positions    int // rows of the position embedding
	embedding    int // width of the embeddings
	// Dropout rates in training, as transformers applies them.
	embeddingDropout, attentionDropout, attentionOutDropout, feedForwardDropout float64
	sequenceDropout, tokenDropout                                               float64
}

func (o *encoderOptions) options() *encoderOptions { return o }

func (o *encoderOptions) path(name string) string { return o.prefix + "." + name }

// readEncoder reads what the families have in common.
func readEncoder(f *fields, configJSON []byte, prefix, class string) *encoderOptions {
	o := &encoderOptions{config: commonConfig(f, configJSON, 512), prefix: prefix, class: class}
	o.config.TieWordEmbeddings = f.flag("tie_word_embeddings", true)
	o.intermediate = f.sizeUpTo("intermediate_size", maxWidth)
	o.heads = f.sizeUpTo("num_attention_heads", 1<<16)
	if o.config.HiddenSize%o.heads != 0 {
		f.fail("hidden_size %d is no multiple of num_attention_heads %d", o.config.HiddenSize, o.heads)
	}
	o.normEps = f.numberOr("layer_norm_eps", 1e-12)
	o.positions, o.embedding = o.config.MaxPositions, o.config.HiddenSize
	for _, name := range []string{"is_decoder", "add_cross_attention"} {
		if f.flag(name, false) {
			f.fail("%s is not supported: wanted an encoder", name)
		}
	}
	if kind := f.textOr("position_embedding_type", "absolute"); kind != "absolute" {
		f.fail("position_embedding_type %q is not supported: wanted absolute", kind)
	}
	if pruned := f.object("pruned_heads"); pruned != nil && len(pruned.values) > 0 {
		f.fail("pruned_heads: pruned models are not supported")
	}
	refuseOptions(f)
	return o
}

// rate reads a dropout rate.
func (f *fields) rate(name string, otherwise float64) float64 {
	x := otherwise
	if f.get(name, "a number from 0 to less than 1", &x) && !(x >= 0 && x < 1) {
		f.fail("%s: wanted a number from 0 to less than 1, got %g", name, x)
		return otherwise
	}
	return x
}

// embeddingModules are those of words, positions and, where there are any, types.
func (o *encoderOptions) embeddingModules() []site.Module {
	table := func(name string, rows int) site.Module {
		return site.Module{Path: o.path("embeddings." + name), Kind: site.Embedding, In: rows, Out: o.embedding}
	}
	modules := []site.Module{table("word_embeddings", o.config.VocabSize), table("position_embeddings", o.positions)}
	if o.types > 0 {
		modules = append(modules, table("token_type_embeddings", o.types))
	}
	return append(modules, biasedNorm(o.path("embeddings.LayerNorm"), o.embedding))
}

// embed builds the embeddings. positions are rows of the position embedding, [batch
// or 1, length] int32. Rows of a prefix are of type 0.
func (o *encoderOptions) embed(b *Blocks, pass *attentionPass, positions *Node) *Node {
	in, all := pass.in, shapes.Make(dtypes.Int32, pass.in.IDs.Shape().Dim(0), pass.length)
	x := pass.prepend(b.Embedding(o.path("embeddings.word_embeddings"), in.IDs))
	if o.types > 0 {
		types := in.Types
		if types == nil {
			types = ZerosLike(in.IDs)
		}
		if pass.rows > 0 {
			types = Concatenate([]*Node{Zeros(b.Graph, shapes.Make(dtypes.Int32, all.Dim(0), pass.rows)), types}, 1)
		}
		x = Add(x, b.Embedding(o.path("embeddings.token_type_embeddings"), types))
	}
	positions = BroadcastToShape(positions, all)
	x = Add(x, b.Embedding(o.path("embeddings.position_embeddings"), positions))
	if in.Positions != nil {
		// The lookup would take the last row for what lies beyond it.
		beyond := GreaterThan(positions, Scalar(b.Graph, dtypes.Int32, o.positions-1))
		x = Where(BroadcastToShape(InsertAxes(beyond, -1), x.Shape()), Scalar(b.Graph, x.DType(), math.NaN()), x)
	}
	x = b.LayerNorm(o.path("embeddings.LayerNorm"), x, o.normEps)
	return b.Dropout(o.path("embeddings.dropout"), x, o.embeddingDropout)
}

// start checks the inputs of a pass.
func (o *encoderOptions) start(b *Blocks, in site.Tokens) *attentionPass {
	if in.Cache != nil {
		panic(fmt.Errorf("models: %s reads a text in both directions, so it has no key/value cache", o.config.ModelType))
	}
	pass := b.newAttentionPass(in)
	if in.Types != nil && !in.Types.Shape().Equal(in.IDs.Shape()) {
		panic(fmt.Errorf("models: token types: wanted %s as the ids, got %s", in.IDs.Shape(), in.Types.Shape()))
	}
	if in.Positions == nil && pass.slots > o.config.MaxPositions {
		panic(fmt.Errorf("models: %s was made for %d positions, got %s", o.config.ModelType, o.config.MaxPositions, pass.tokens()))
	}
	return pass
}

// blockPaths names the modules of one block.
type blockPaths struct {
	query, key, value, out, attentionNorm, up, down, outputNorm string
	// attention and feedForward are the modules that own the residual connections.
	attention, feedForward string
}

func (o *encoderOptions) blockModules(p blockPaths) []site.Module {
	hidden := o.config.HiddenSize
	return []site.Module{
		biasedLinear(p.query, hidden, hidden), biasedLinear(p.key, hidden, hidden), biasedLinear(p.value, hidden, hidden),
		biasedLinear(p.out, hidden, hidden), biasedNorm(p.attentionNorm, hidden),
		biasedLinear(p.up, hidden, o.intermediate), biasedLinear(p.down, o.intermediate, hidden), biasedNorm(p.outputNorm, hidden),
	}
}

// block builds attention and feed-forward, each added to its input and normalised
// after that. use counts the uses of a block, which ALBERT repeats.
func (o *encoderOptions) block(b *Blocks, pass *attentionPass, p blockPaths, use int, x *Node) *Node {
	if b.Checkpoint {
		x = x.Checkpoint()
	}
	key := func(path string) string { return fmt.Sprintf("%s.dropout.%d", path, use) }
	headDim := x.Shape().Dim(2) / o.heads
	split := func(path string) *Node { return splitHeads(b.Linear(path, x), o.heads) }
	q := MulScalar(split(p.query), 1/math.Sqrt(float64(headDim)))
	k, v := pass.remember(pass.block, split(p.key), split(p.value))
	attention, feedForward := pass.layers[pass.block].Attention, pass.layers[pass.block].FeedForward
	pass.block++
	attended := pass.attendAll(q, k, v, func(weights *Node) *Node {
		return b.Dropout(key(p.query), weights, o.attentionDropout)
	})
	attended = b.Dropout(key(p.out), b.Linear(p.out, attended), o.attentionOutDropout)
	x = b.add(attention, x, attended, func(sum *Node) *Node { return b.LayerNorm(p.attentionNorm, sum, o.normEps) })
	up := b.recomputed([]*Node{b.Linear(p.up, x)}, func(in []*Node) *Node { return o.act(in[0]) })
	down := b.Dropout(key(p.down), b.Linear(p.down, up), o.feedForwardDropout)
	return b.add(feedForward, x, down, func(sum *Node) *Node { return b.LayerNorm(p.outputNorm, sum, o.normEps) })
}

// stackModules lists the trunk of embeddings and then the blocks of all layers.
func (o *encoderOptions) stackModules(layer func(i int) blockPaths) []site.Module {
	modules := o.embeddingModules()
	for i := range o.config.NumLayers {
		modules = append(modules, o.blockModules(layer(i))...)
	}
	return modules
}

// layer describes a block.
func (o *encoderOptions) layer(p blockPaths) site.Layer {
	return site.Layer{
		Attention:   sublayerModule(p.attention, site.Attention, o.config.HiddenSize),
		FeedForward: sublayerModule(p.feedForward, site.FeedForward, o.config.HiddenSize),
		Heads:       o.heads, KVHeads: o.heads, HeadDim: o.config.HiddenSize / o.heads,
	}
}

// stackLayers describes the blocks of all layers.
func (o *encoderOptions) stackLayers(layer func(i int) blockPaths) []site.Layer {
	out := make([]site.Layer, o.config.NumLayers)
	for i := range out {
		out[i] = o.layer(layer(i))
	}
	return out
}

// stack builds the blocks of all layers.
func (o *encoderOptions) stack(b *Blocks, pass *attentionPass, layer func(i int) blockPaths, x *Node) *Node {
	for i := range o.config.NumLayers {
		x = o.block(b, pass, layer(i), 0, x)
	}
	if b.Checkpoint {
		x = x.StopCheckpoint()
	}
	return x
}

// pooledHead is the head of sequences that stands on the checkpoint's own pooler.
func (o *encoderOptions) pooledHead(poolerPath string, labels int) head {
	hidden := o.config.HiddenSize
	pooler, classifier := biasedLinear(poolerPath, hidden, hidden), classifierModule("classifier", hidden, labels)
	return head{
		pooling: []site.Module{pooler},
		modules: []site.Module{classifier},
		build: func(b *Blocks, x *Node) *Node {
			x = Tanh(b.Linear(pooler.Path, firstToken(x)))
			return b.Linear(classifier.Path, b.Dropout("classifier.dropout", x, o.sequenceDropout))
		},
	}
}

// maskedHeadOf is the head of a masked language model: a transform in the embeddings'
// width and a projection that shares the word embedding's weight, and whose bias may
// have a name of its own.
func (o *encoderOptions) maskedHeadOf(dense, norm, decoder, bias string, act activation) head {
	project := classifierModule(decoder, o.embedding, o.config.VocabSize)
	h := head{}
	if own := decoder + ".bias"; bias != own {
		if o.config.TieWordEmbeddings {
			project.Bias = false
			h.bare = []site.Parameter{{Name: bias, Shape: []int{o.config.VocabSize}}}
			bias = own
		}
		h.spare = []string{bias}
	}
	if o.config.TieWordEmbeddings {
		project.TiedTo = o.path("embeddings.word_embeddings")
	}
	h.modules = []site.Module{biasedLinear(dense, o.config.HiddenSize, o.embedding), biasedNorm(norm, o.embedding), project}
	h.build = func(b *Blocks, x *Node) *Node {
		x = b.LayerNorm(norm, act(b.Linear(dense, x)), o.normEps)
		y := b.Linear(decoder, x)
		for _, p := range h.bare {
			y = Add(y, ExpandLeftToRank(b.Weight(p.Name), y.Rank()))
		}
		return y
	}
	return h
}

// Rename knows checkpoints of the trunk alone, whose names lack its prefix, and those
// that TensorFlow's names for a norm's parameters have come down to.
func (o *encoderOptions) Rename(name string, has func(string) bool) string {
	const words = "embeddings.word_embeddings.weight"
	if has(words) && !has(o.path(words)) {
		for _, part := range []string{"embeddings.", "encoder.", "transformer.", "pooler."} {
			if strings.HasPrefix(name, part) {
				name = o.path(name)
				break
			}
		}
	}
	if base, ok := strings.CutSuffix(name, "LayerNorm.gamma"); ok {
		return base + "LayerNorm.weight"
	}
	if base, ok := strings.CutSuffix(name, "LayerNorm.beta"); ok {
		return base + "LayerNorm.bias"
	}
	return name
}

// renameBias is Rename for a vocabulary's bias with two names.
func (o *encoderOptions) renameBias(name, decoder, bias string, has func(string) bool) string {
	if name == decoder+".bias" && o.config.TieWordEmbeddings && !has(bias) {
		return bias
	}
	return o.Rename(name, has)
}

// firstToken is the hidden state of each row's first token: [batch, hidden].
func firstToken(hidden *Node) *Node {
	dims := hidden.Shape().Dimensions
	return Reshape(SliceAxis(hidden, 1, AxisElem(0)), dims[0], dims[2])
}

// maskedLM is an encoder with the head it was pre-trained with: a language model
// whose tokens see those after them, too.
type maskedLM struct {
	encoder
	head head
}

// registerEncoder makes a family of encoders known.
func registerEncoder(modelType string, read func(f *fields, configJSON []byte) encoder) {
	Register(modelType, func(configJSON []byte) (Architecture, error) {
		f, err := newFields(configJSON)
		if err != nil {
			return nil, err
		}
		e := read(f, configJSON)
		if err := f.err(); err != nil {
			return nil, err
		}
		return &maskedLM{encoder: e, head: e.maskedHead()}, nil
	})
}

func (m *maskedLM) Config() Config { return m.options().config }

func (m *maskedLM) Modules() []site.Module { return append(m.trunk(), m.head.all()...) }

func (m *maskedLM) Parameters() []site.Parameter {
	return append(parametersOf(m.trunk()), m.head.parameters()...)
}

func (m *maskedLM) Ignorable(tensor string) bool {
	return ignorable(m.encoder, tensor) || slices.Contains(m.head.spare, tensor)
}

// ignorable knows stored buffers, and what other tasks need.
func ignorable(e encoder, tensor string) bool {
	o := e.options()
	return tensor == o.path("embeddings.position_ids") || tensor == o.path("embeddings.token_type_ids") ||
		slices.ContainsFunc(append(e.otherTasks(), o.path("pooler.")), func(start string) bool { return strings.HasPrefix(tensor, start) })
}

// CacheShape is empty: nothing can be continued.
func (m *maskedLM) CacheShape() site.CacheShape { return site.CacheShape{} }

func (m *maskedLM) Hidden(b *Blocks, in site.Tokens) *Node { return tokensOf(in, m.encode(b, in)) }

func (m *maskedLM) Logits(b *Blocks, hidden *Node) *Node { return m.head.build(b, hidden) }

// errNotCausal is the reason why an encoder generates nothing.
var errNotCausal = errors.New("it is an encoder, which reads a text in both directions and continues none")
