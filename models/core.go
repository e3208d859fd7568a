package models

import (
	"errors"

	"github.com/gomlx/compute"
	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/gomlx/ml/model"

	"github.com/gopeft/gopeft/quant"
	"github.com/gopeft/gopeft/site"
)

// network is what one config.json describes, whatever its outputs are. See [Architecture].
type network interface {
	Config() Config
	Modules() []site.Module
	Parameters() []site.Parameter
	Ignorable(tensor string) bool
	Layers() []site.Layer
}

// core is what every base of this package is: a network and its frozen parameters on
// a device.
type core struct {
	config     Config
	network    network
	modules    map[string]site.Module
	store      *model.Store
	backend    compute.Backend
	dtype      dtypes.DType
	recompute  bool // see Blocks.recomputed
	nameOrPath string
	folder     *folder // nil for a model made in memory
	// complete adds to a checkpoint what it lacks; nil: nothing.
	complete func(source) source
	report   LoadReport
	// scheme says which weights to hold in few bits; nil: none.
	scheme quant.Scheme
	// quantised are the weights held in few bits, by name.
	quantised map[string]quantisedWeight
	// closeBackend closes a backend that the model opened; nil: it did not.
	closeBackend func()
}

// Config describes the model.
func (c *core) Config() Config { return c.config }

// Backend runs the model's programs.
func (c *core) Backend() compute.Backend { return c.backend }

// Store holds the parameters, none of them trainable.
func (c *core) Store() *model.Store { return c.store }

// DType is the dtype of the stored parameters and, by default, of a pass.
func (c *core) DType() dtypes.DType { return c.dtype }

// ModelType is config.json's model_type.
func (c *core) ModelType() string { return c.config.ModelType }

// NameOrPath is what the model was loaded from, "" if it was made in memory.
func (c *core) NameOrPath() string { return c.nameOrPath }

// Modules lists every module that can be a site, in the order of the forward pass.
func (c *core) Modules() []site.Module { return c.network.Modules() }

// Parameters lists every parameter once.
func (c *core) Parameters() []site.Parameter { return c.network.Parameters() }

// Layers lists the blocks in the order of the forward pass.
func (c *core) Layers() []site.Layer { return c.network.Layers() }

// Words is the embedding of token ids.
func (c *core) Words() site.Module { return wordsOf(c.network) }

// WordScale is what the model multiplies the output of Words with; 1 in most.
func (c *core) WordScale() float64 { return wordScale(c.network) }

// VocabSize is the number of token ids.
func (c *core) VocabSize() int { return c.config.VocabSize }

// MaxPositions is the longest sequence the model was made for.
func (c *core) MaxPositions() int { return c.config.MaxPositions }

// LoadReport says how the checkpoint's tensors became the model's parameters; it is
// empty for a model made in memory.
func (c *core) LoadReport() LoadReport { return c.report }

// tensors opens the tensors of the folder that the model was loaded from.
func (c *core) tensors() (source, error) {
	src, err := c.folder.open()
	if err != nil {
		return nil, err
	}
	named, err := renamed(c.network, src)
	if err != nil {
		return nil, errors.Join(err, src.Close())
	}
	if c.complete != nil {
		named = c.complete(named)
	}
	if len(c.quantised) > 0 {
		named = dequantisedSource{named, c}
	}
	return named, nil
}

// close frees the parameters on the device, and the backend if the model opened it.
func (c *core) close() {
	if c.store != nil {
		c.store.Finalize()
		c.store = nil
	}
	if c.closeBackend != nil {
		c.closeBackend()
		c.closeBackend = nil
	}
}
