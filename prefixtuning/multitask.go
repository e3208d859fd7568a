package prefixtuning

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/gomlx/core/graph"

	"github.com/gopeft/gopeft/internal/graphx"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// MultitaskPromptTuningType is the peft_type of [MultitaskPromptTuningConfig].
const MultitaskPromptTuningType = "MULTITASK_PROMPT_TUNING"

func init() { peft.Register(MultitaskPromptTuningType, decodeMultitask) }

// Ways in which a multitask prompt starts from another one's file, see
// [MultitaskPromptTuningConfig].PromptTuningInitStateDictPath.
const (
	// InitAverageSourceTasks takes the prompt and the mean of its tasks, as one task.
	InitAverageSourceTasks Init = "AVERAGE_SOURCE_TASKS"
	// InitExactSourceTask takes the prompt and one of its tasks.
	InitExactSourceTask Init = "EXACT_SOURCE_TASK"
	// InitOnlySourceShared takes the prompt alone.
	InitOnlySourceShared Init = "ONLY_SOURCE_SHARED"
)

// MultitaskPromptTuningConfig trains a prompt as in [PromptTuningConfig] that all tasks share,
// and a matrix of low rank for each task that the prompt is multiplied with, element by element
// (Wang et al. 2023, arXiv:2303.02861), field by field the MultitaskPromptTuningConfig of peft.
//
// The batch says which task a row belongs to, see [site.Tokens].Tasks. Without, all rows are of
// task 0 if there is only that one; else it is an error.
type MultitaskPromptTuningConfig struct {
	peft.PeftConfig
	// NumVirtualTokens is the length of the prompt, at least 1.
	NumVirtualTokens int `json:"num_virtual_tokens"`
	// NumTasks is the number of tasks, NumRanks the rank of their matrices. 0: 1.
	NumTasks int `json:"num_tasks"`
	NumRanks int `json:"num_ranks"`
	// PromptTuningInit says how the prompt starts. "": [InitRandom].
	PromptTuningInit Init `json:"prompt_tuning_init"`
	// PromptTuningInitText and TokenizerNameOrPath are as in [PromptTuningConfig].
	PromptTuningInitText Text                       `json:"prompt_tuning_init_text"`
	TokenizerNameOrPath  Text                       `json:"tokenizer_name_or_path"`
	TokenizerKwargs      map[string]json.RawMessage `json:"tokenizer_kwargs"`
	// PromptTuningInitStateDictPath is the adapter_model.safetensors of the multitask prompt
	// that this one starts from, and PromptTuningInitTask the task of [InitExactSourceTask].
	PromptTuningInitStateDictPath Text `json:"prompt_tuning_init_state_dict_path"`
	PromptTuningInitTask          int  `json:"prompt_tuning_init_task"`
	// TokenDim is the width of the embeddings; NumAttentionHeads and NumLayers are the base's,
	// and NumTransformerSubmodules is 1.
	TokenDim                 Size `json:"token_dim"`
	NumAttentionHeads        Size `json:"num_attention_heads"`
	NumLayers                Size `json:"num_layers"`
	NumTransformerSubmodules Size `json:"num_transformer_submodules"`
	// ModulesToSave are trained and saved as a whole, see [peft.CopyModules].
	ModulesToSave peft.Strings `json:"modules_to_save"`
}

// PeftType implements [peft.Config].
func (MultitaskPromptTuningConfig) PeftType() string { return MultitaskPromptTuningType }

// WithCommon implements [peft.Config].
func (c MultitaskPromptTuningConfig) WithCommon(common peft.PeftConfig) peft.Config {
	c.PeftConfig = common
	return c
}

func (c *MultitaskPromptTuningConfig) geometry() geometry {
	return geometry{c.NumVirtualTokens, &c.TokenDim, &c.NumTransformerSubmodules, &c.NumAttentionHeads, &c.NumLayers, nil}
}

func (c *MultitaskPromptTuningConfig) start() start {
	return start{c.PromptTuningInit, c.PromptTuningInitText, &c.TokenizerNameOrPath, c.TokenizerKwargs}
}

// fromFile reports whether the prompt starts from another one's file.
func (c MultitaskPromptTuningConfig) fromFile() bool {
	switch c.PromptTuningInit {
	case InitAverageSourceTasks, InitExactSourceTask, InitOnlySourceShared:
		return true
	}
	return false
}

// Validate implements [peft.Config].
func (c MultitaskPromptTuningConfig) Validate() error {
	if err := c.validate(); err != nil {
		return fmt.Errorf("multitask_prompt_tuning: %w", err)
	}
	return nil
}

func (c MultitaskPromptTuningConfig) validate() error {
	if err := c.geometry().check(); err != nil {
		return err
	}
	if err := c.start().check(InitRandom, InitSampleVocab, InitText, InitAverageSourceTasks, InitExactSourceTask, InitOnlySourceShared); err != nil {
		return err
	}
	switch {
	case c.NumTasks < 0 || c.NumTasks > maxSize:
		return fmt.Errorf("num_tasks is %d, want 1 or more", c.NumTasks)
	case c.NumRanks < 0 || c.NumRanks > maxSize:
		return fmt.Errorf("num_ranks is %d, want 1 or more", c.NumRanks)
	case c.PromptTuningInitTask < 0:
		return fmt.Errorf("prompt_tuning_init_task is %d, want 0 or more", c.PromptTuningInitTask)
	case c.Reading():
		return nil
	case c.fromFile() && c.PromptTuningInitStateDictPath == "":
		return fmt.Errorf("prompt_tuning_init is %s without prompt_tuning_init_state_dict_path", c.PromptTuningInit)
	case c.fromFile() && c.PromptTuningInit != InitOnlySourceShared && c.NumTasks > 1:
		return fmt.Errorf("prompt_tuning_init %s makes one task, but num_tasks is %d", c.PromptTuningInit, c.NumTasks)
	}
	return nil
}

func decodeMultitask(data []byte) (peft.Config, error) {
	var c MultitaskPromptTuningConfig
	common, err := peft.DecodeFields(data, &c)
	if err != nil {
		return nil, fmt.Errorf("multitask_prompt_tuning: %w", err)
	}
	c.PeftConfig = common
	return c, nil
}

// Attach implements [peft.Config].
func (c MultitaskPromptTuningConfig) Attach(base site.Base) (peft.Adapter, error) {
	c.ModulesToSave = c.SavedModules(c.ModulesToSave)
	a, err := c.attach(base)
	if err != nil {
		return nil, fmt.Errorf("multitask_prompt_tuning: %w", err)
	}
	copies, err := saved(base, c.ModulesToSave, c.PeftConfig)
	if err != nil {
		return nil, fmt.Errorf("multitask_prompt_tuning: %w", err)
	}
	return peft.Compose(a, copies), nil
}

// Names of the tensors of tasks.
const (
	taskCols = "prefix_task_cols"
	taskRows = "prefix_task_rows"
)

func (c MultitaskPromptTuningConfig) attach(base site.Base) (peft.Adapter, error) {
	t, err := c.geometry().prompted(base)
	if err != nil {
		return nil, err
	}
	c.NumTasks, c.NumRanks = max(c.NumTasks, 1), max(c.NumRanks, 1)
	if c.PromptTuningInit == "" {
		c.PromptTuningInit = InitRandom
	}
	n, width := c.NumVirtualTokens, int(c.TokenDim)
	a := &multitask{prompt: prompt{virtual: n}, tasks: c.NumTasks}
	init := normal
	a.cols = peft.Param{Name: taskCols, Key: taskCols, Shape: []int{c.NumTasks, n, c.NumRanks}, Init: spread(0.02)}
	a.rows = peft.Param{Name: taskRows, Key: taskRows, Shape: []int{c.NumTasks, c.NumRanks, width}, Init: spread(0.02)}
	switch {
	case c.Reading():
	case c.fromFile():
		source, err := c.source()
		if err != nil {
			return nil, fmt.Errorf("prompt_tuning_init_state_dict_path %q: %w", c.PromptTuningInitStateDictPath, err)
		}
		init = source.init(flatKey)
		if c.PromptTuningInit != InitOnlySourceShared {
			a.cols.Init, a.rows.Init = source.init(taskCols), source.init(taskRows)
		}
	default:
		if init, err = c.start().from(t, n); err != nil {
			return nil, err
		}
	}
	a.encoder, a.config = table{n, width, init}, c
	return a, nil
}

// multitask is a MultitaskPromptTuningConfig planned on a base.
type multitask struct {
	prompt
	tasks      int
	cols, rows peft.Param
}

var (
	_ peft.PrefixAdapter = (*multitask)(nil)
	_ peft.TaskAdapter   = (*multitask)(nil)
)

// NumTasks implements [peft.TaskAdapter].
func (a *multitask) NumTasks() int { return a.tasks }

// Params implements [peft.Adapter].
func (a *multitask) Params() []peft.Param { return append(a.params(), a.cols, a.rows) }

// Prefix implements [peft.PrefixAdapter]: the prompt times cols·rows of the row's task.
func (a *multitask) Prefix(v *peft.Values, p *site.Pass, in site.Tokens) site.Prefix {
	shared := a.encode(v, p)
	if in.Tasks == nil && a.tasks > 1 {
		panic(fmt.Errorf("multitask_prompt_tuning: the adapter has %d tasks, but the batch has no task ids", a.tasks))
	}
	products := graphx.Dot(v.Get(taskCols), []int{2}, []int{0}, v.Get(taskRows), []int{1}, []int{0}) // [tasks, virtual, width]
	if in.Tasks == nil {
		return site.Prefix{Embeddings: graph.ConvertDType(graph.Mul(shared, graph.Squeeze(products, 0)), p.DType)}
	}
	if in.Tasks.Rank() != 1 || in.Tasks.DType() != dtypes.Int32 || in.Tasks.Shape().Dim(0) != in.IDs.Shape().Dim(0) {
		panic(errors.New("multitask_prompt_tuning: task ids: want [batch] int32, got " + in.Tasks.Shape().String()))
	}
	mine := graph.Gather(products, graph.InsertAxes(in.Tasks, -1))
	prompts := graph.Mul(graph.BroadcastToShape(graph.InsertAxes(shared, 0), mine.Shape()), mine)
	// The lookup takes the nearest task for one that does not exist.
	g := prompts.Graph()
	wrong := graph.LogicalOr(graph.LessThan(in.Tasks, graph.ZerosLike(in.Tasks)), graph.GreaterOrEqual(in.Tasks, graph.Scalar(g, dtypes.Int32, a.tasks)))
	wrong = graph.BroadcastToShape(graph.Reshape(wrong, -1, 1, 1), prompts.Shape())
	prompts = graph.Where(wrong, graph.Scalar(g, prompts.DType(), math.NaN()), prompts)
	return site.Prefix{Embeddings: graph.ConvertDType(prompts, p.DType)}
}
