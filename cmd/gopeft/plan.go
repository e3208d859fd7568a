package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/alecthomas/kong"
	"github.com/gomlx/compute/dtypes"

	"github.com/gopeft/gopeft/internal/geometry"
	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/quant"
	"github.com/gopeft/gopeft/train"
)

// planCommand prints a train.MemoryPlan.
type planCommand struct {
	Config      string   `required:"" help:"A config.json, a Hugging Face folder, a hub id, or one of ${geometries}."`
	R           *int     `help:"LoRA's rank. Default: 8." placeholder:"8" xor:"rank"` // nil: not given, which --full asks for
	Targets     []string `help:"Modules to adapt, or all-linear. Default: those usual for the model." placeholder:"q_proj,v_proj" xor:"targets"`
	Dropout     float64  `help:"LoRA's dropout, which costs memory whatever its rate." xor:"dropout" placeholder:"0.05"`
	Full        bool     `help:"Train all parameters instead of an adapter." xor:"rank,targets,quant,dropout"`
	Quant       string   `help:"Hold linear layers in nf4, fp4 or int8." xor:"quant" placeholder:"nf4"`
	DoubleQuant bool     `help:"Quantise the statistics of nf4 or fp4, too."`
	Batch       int      `default:"8" help:"Rows of a batch."`
	Seq         int      `default:"512" help:"Tokens of a row."`
	Checkpoint  bool     `help:"Compute each block again in the backward pass."`
	Dtype       string   `default:"bf16" enum:"bf16,f16,f32" help:"What is computed in: bf16, f16 or f32."`
	Modules     bool     `help:"List the modules that are adapted."`
}

var planVars = kong.Vars{"geometries": strings.Join(geometry.Names(), ", ")}

// Run is the command.
func (c *planCommand) Run(ctx context.Context, out output) error {
	config, err := geometry.Read(ctx, c.Config)
	if err != nil {
		return fmt.Errorf("--config: %w", err)
	}
	scheme, err := quant.Parse(c.Quant, c.DoubleQuant)
	if err != nil {
		return fmt.Errorf("--quant: %w", err)
	}
	dtype := map[string]dtypes.DType{"bf16": dtypes.BFloat16, "f16": dtypes.Float16, "f32": dtypes.Float32}[c.Dtype]
	base, err := models.NewBlueprint(config, models.Options{DType: dtype, Quantization: scheme})
	if err != nil {
		return fmt.Errorf("--config %s: %w", c.Config, err)
	}
	if positions := base.MaxPositions(); positions > 0 && c.Seq > positions {
		return fmt.Errorf("--seq is %d: the model was made for %d positions", c.Seq, positions)
	}
	adapter, err := peft.DryRun(base, c.method())
	if err != nil {
		return err
	}
	plan, err := train.PlanMemory(base, c.method(), train.MemoryOptions{Batch: c.Batch, Length: c.Seq, GradientCheckpointing: c.Checkpoint})
	if err != nil {
		return err
	}
	if c.Modules {
		fmt.Fprintln(out, adapter)
	} else {
		fmt.Fprintln(out, adapter.Count)
	}
	_, err = fmt.Fprint(out, plan)
	return err
}

func (c *planCommand) method() peft.Config {
	if c.Full {
		return peft.Full{}
	}
	r := 8
	if c.R != nil {
		r = *c.R
	}
	method := lora.LoraConfig{R: r, LoraAlpha: float64(2 * r), LoraDropout: c.Dropout}
	switch {
	case len(c.Targets) == 1 && c.Targets[0] == "all-linear":
		method.TargetModules = peft.AllLinear
	case len(c.Targets) > 0:
		method.TargetModules = peft.Modules(c.Targets...)
	}
	return method
}
