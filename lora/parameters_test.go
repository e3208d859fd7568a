package lora

import (
	"path/filepath"
	"testing"

	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/internal/safetensors"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// Experts' weights of three axes, stored either way, two in one module: what is merged
// and what a graph computes is what peft makes of its own files (peft.md 8.27).
func TestExperts(t *testing.T) {
	for name, transposed := range map[string]bool{"experts": false, "experts_transposed": true} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(basetest.Fixtures, "methods", name)
			file, err := safetensors.Open(filepath.Join(dir, "golden.safetensors"))
			require.NoError(t, err)
			defer file.Close()
			base := &basetest.Shape{}
			for _, n := range []string{"0.up", "0.down"} {
				info, ok := file.Info("before." + n)
				require.True(t, ok)
				base.Bare = append(base.Bare, site.Parameter{Name: n, Shape: info.Shape, Transposed: transposed})
			}
			pm, err := peft.LoadAdapter(base, dir)
			require.NoError(t, err)
			values, err := pm.TensorValues(peft.DefaultAdapter)
			require.NoError(t, err)
			config, err := pm.Config(peft.DefaultAdapter)
			require.NoError(t, err)
			a, err := attach(config.(LoraConfig), base)
			require.NoError(t, err)
			for _, p := range a.parameters.list {
				before, after := make([]float32, p.Size()), make([]float32, p.Size())
				require.NoError(t, file.Float32s("before."+p.Name, before))
				require.NoError(t, file.Float32s("after."+p.Name, after))
				delta := p.inGraph(t, values)
				for i := range delta {
					delta[i] = before[i] + float32(p.scaling)*delta[i]
				}
				basetest.RequireClose(t, after, delta, 1e-6, "in a graph: "+p.Name)
				require.NoError(t, a.parameters.Merge(p.Name, before, nil, func(name string) []float32 { return values[name] }))
				basetest.RequireClose(t, after, before, 1e-6, "merged "+p.Name)
			}
		})
	}
}

func (p parameter) inGraph(t *testing.T, values map[string][]float32) []float32 {
	t.Helper()
	A := tensors.FromFlatDataAndDimensions(values[p.nameA()], p.r*p.experts, p.in)
	B := tensors.FromFlatDataAndDimensions(values[p.nameB()], p.out, p.r*p.experts)
	out, err := graph.CallOnce(backendtest.Open(t), p.delta, A, B)
	require.NoError(t, err)
	require.Equal(t, p.Shape, out.Shape().Dimensions)
	return basetest.Flat(t, out)
}

func TestTargetParameterErrors(t *testing.T) {
	base := &basetest.Shape{Bare: []site.Parameter{{Name: "experts.up", Shape: []int{2, 3, 4}}, {Name: "experts.bias", Shape: []int{4}}, {Name: "top", Shape: []int{3, 4}}}}
	base.Add(site.Module{Path: "q_proj", Kind: site.Linear, In: 4, Out: 4})
	for _, c := range []struct {
		config LoraConfig
		want   string
	}{
		{LoraConfig{TargetParameters: []string{"experts.upp"}}, `target parameter "experts.upp" matches nothing; did you mean "experts.up"?`},
		{LoraConfig{TargetParameters: []string{"experts.bias"}}, `target parameter "experts.bias" has shape [4], want two or three axes`},
		{LoraConfig{TargetParameters: []string{"top"}}, `target parameter "top" belongs to no module`},
		{LoraConfig{TargetParameters: []string{"experts.up"}, LoraDropout: 0.1}, "target_parameters does not work with lora_dropout"},
		{LoraConfig{TargetParameters: []string{"q_proj.weight"}, TargetModules: peft.Modules("q_proj")}, `is the weight of target module "q_proj": choose one`},
		{LoraConfig{TargetParameters: []string{"experts.up"}, RankPattern: peft.Patterns{{Pattern: "nothing", Value: 3}}}, "nothing"},
		{LoraConfig{TargetModules: peft.Modules()}, "target_modules is an empty list"},
	} {
		c.config.R = 2
		_, err := peft.GetPeftModel(base, c.config)
		require.ErrorContains(t, err, c.want)
	}
}
