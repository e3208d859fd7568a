package adapters

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/internal/safetensors"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// hubCopy copies the folder of a fixture, with some of the keys of its configuration changed.
func hubCopy(t *testing.T, name string, change func(outer, config map[string]any)) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "adapter")
	require.NoError(t, os.CopyFS(dir, os.DirFS(hubFixture(name))))
	path := filepath.Join(dir, hubConfigFile)
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	var outer map[string]any
	require.NoError(t, json.Unmarshal(data, &outer))
	if change != nil {
		change(outer, outer["config"].(map[string]any))
	}
	data, err = json.Marshal(outer)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, data, 0o600))
	return dir
}

// rewriteHub changes the tensors of a folder.
func rewriteHub(t *testing.T, dir, name string, change func(list []safetensors.Tensor) []safetensors.Tensor) string {
	t.Helper()
	path := filepath.Join(dir, name)
	file, err := safetensors.Open(path)
	require.NoError(t, err)
	var list []safetensors.Tensor
	for _, name := range file.Names() {
		info, _ := file.Info(name)
		data, err := file.Bytes(name)
		require.NoError(t, err)
		list = append(list, safetensors.Tensor{Name: name, DType: info.DType, Shape: info.Shape, Bytes: append([]byte{}, data...)})
	}
	require.NoError(t, file.Close())
	require.NoError(t, safetensors.Write(path, nil, change(list)))
	return dir
}

// What is wrong with a folder is said.
func TestAdapterHubErrors(t *testing.T) {
	type object = map[string]any
	changed := func(change func(outer, config object)) func(t *testing.T) string {
		return func(t *testing.T) string { return hubCopy(t, "bert-norms", change) }
	}
	tensors := func(change func(list []safetensors.Tensor) []safetensors.Tensor) func(t *testing.T) string {
		return func(t *testing.T) string {
			return rewriteHub(t, hubCopy(t, "bert-norms", nil), hubWeightsFile, change)
		}
	}
	files := func(change func(dir string) error) func(t *testing.T) string {
		return func(t *testing.T) string {
			dir := hubCopy(t, "bert-norms", nil)
			require.NoError(t, change(dir))
			return dir
		}
	}
	move := func(from, to string) func(t *testing.T) string {
		return files(func(dir string) error { return os.Rename(filepath.Join(dir, from), filepath.Join(dir, to)) })
	}
	for name, c := range map[string]struct {
		dir  func(t *testing.T) string
		want string
	}{
		"another family":  {changed(func(o, _ object) { o["model_type"] = "roberta" }), `it was made for a model of type "roberta", the base is "bert"`},
		"another size":    {changed(func(o, _ object) { o["hidden_size"] = 768 }), "it was made for 768 hidden features, the base has 16"},
		"lora":            {changed(func(_, c object) { c["architecture"] = "lora" }), `it is an adapter of kind "lora", not a bottleneck adapter`},
		"a union":         {changed(func(_, c object) { c["architecture"] = "union" }), `it is an adapter of kind "union"`},
		"gates":           {changed(func(_, c object) { c["use_gating"] = true }), `option "use_gating" = true is refused`},
		"compacter":       {changed(func(_, c object) { c["phm_layer"] = true }), `option "phm_layer" = true is refused`},
		"invertible":      {changed(func(_, c object) { c["inv_adapter"] = "nice" }), `option "inv_adapter" = "nice" is refused`},
		"old invertible":  {changed(func(_, c object) { c["invertible_adapter"] = object{"block_type": "nice"} }), "invertible adapters of embeddings are not supported"},
		"no place":        {changed(func(_, c object) { c["output_adapter"] = false }), "neither mh_adapter nor output_adapter"},
		"no factor":       {changed(func(_, c object) { delete(c, "reduction_factor") }), `missing required key "reduction_factor"`},
		"factor 0":        {changed(func(_, c object) { c["reduction_factor"] = 0 }), ": adapter_config.json: config: reduction_factor is 0, want a number greater than 0"},
		"a wrong width":   {changed(func(_, c object) { c["reduction_factor"] = 2 }), "do not fit"},
		"more adapters":   {changed(func(_, c object) { c["mh_adapter"] = true }), "missing"},
		"a name":          {changed(func(o, _ object) { o["config"] = "pfeiffer+inv" }), `configuration "pfeiffer+inv" is not supported`},
		"peft's format":   {changed(func(o, _ object) { o["peft_type"] = "LORA" }), "open it with peft.LoadAdapter"},
		"a pickle":        {move(hubWeightsFile, "pytorch_adapter.bin"), "pytorch_adapter.bin is a Python pickle: load it once with AdapterHub's library and save it with save_adapter(..., use_safetensors=True)"},
		"a head's pickle": {move(hubHeadWeights, "pytorch_model_head.bin"), "pytorch_model_head.bin is a Python pickle"},
		"a fusion":        {move(hubConfigFile, "adapter_fusion_config.json"), "it is an AdapterFusion, which is not supported"},
		"no tensors":      {move(hubWeightsFile, "other"), "the folder has no adapter.safetensors"},
		"a head of another model": {files(func(dir string) error {
			return os.WriteFile(filepath.Join(dir, hubHeadConfig), []byte(`{"name": null, "config": null, "label2id": {"yes": 1, "no": 0, "maybe": 2}}`), 0o600)
		}), `label "yes" is number 1 there and number 0 in the base`},
		"a head of more labels": {files(func(dir string) error {
			return os.WriteFile(filepath.Join(dir, hubHeadConfig), []byte(`{"label2id": {"a": 0, "b": 1, "c": 2, "d": 3}}`), 0o600)
		}), "it scores 4 labels (a, b, c, d), the base has 3"},
		"a head of another kind": {files(func(dir string) error {
			return os.WriteFile(filepath.Join(dir, hubHeadConfig), []byte(`{"name": "task", "config": {"head_type": "classification", "layers": 3, "activation_function": "tanh"}}`), 0o600)
		}), `a head of kind "classification" with 3 layers and non-linearity "tanh" is not what the base's head computes`},
		"one tensor less": {tensors(func(l []safetensors.Tensor) []safetensors.Tensor { return l[3:] }), "missing"},
		"one tensor more": {tensors(func(l []safetensors.Tensor) []safetensors.Tensor {
			l = append(l, l[0])
			l[len(l)-1].Name = "bert.encoder.layer.7.output.adapters.task.scaling"
			return l
		}), "unexpected"},
		"the norm twice": {tensors(func(l []safetensors.Tensor) []safetensors.Tensor {
			l[0].Bytes[2] ^= 1
			return l
		}), "differ, but they are one"},
		"an old name too": {tensors(func(l []safetensors.Tensor) []safetensors.Tensor {
			l = append(l, l[0])
			l[len(l)-1].Name = strings.Replace(l[0].Name, ".adapters.", ".layer_text_task_adapters.", 1)
			return l
		}), "an old and a new name of one tensor"},
		"half a head": {func(t *testing.T) string {
			return rewriteHub(t, hubCopy(t, "bert-norms", nil), hubHeadWeights, func(l []safetensors.Tensor) []safetensors.Tensor { return l[1:] })
		}, `model_head.safetensors has no tensor for "classifier.bias"`},
		"NaN": {tensors(func(l []safetensors.Tensor) []safetensors.Tensor {
			copy(l[2].Bytes, []byte{0, 0, 0xc0, 0x7f})
			return l
		}), "holds NaN at element 0"},
	} {
		t.Run(name, func(t *testing.T) {
			base := classifier(t, filepath.Join(basetest.Fixtures, "encoders", "bert_sequence"))
			_, err := LoadAdapterHub(base, c.dir(t))
			require.ErrorContains(t, err, c.want)
			pm, err := LoadAdapterHub(base, hubFixture("bert-norms"))
			require.NoError(t, err)
			_, err = AddAdapterHub(pm, c.dir(t), HubOptions{Name: "second"})
			require.ErrorContains(t, err, c.want)
			require.Equal(t, []string{"task"}, pm.Adapters())
		})
	}
	_, err := LoadAdapterHub(nil, hubFixture("bert-norms"))
	require.ErrorContains(t, err, "base model is nil")
	_, err = LoadAdapterHub(basetest.Load(t, filepath.Join(basetest.Fixtures, "families", "gemma2")), hubFixture("llama-pfeiffer"))
	require.ErrorContains(t, err, `AdapterHub's adapters of model_type "gemma2" are not supported`)
	_, err = peft.LoadAdapter(classifier(t, filepath.Join(basetest.Fixtures, "encoders", "bert_sequence")), hubFixture("bert-norms"))
	require.ErrorContains(t, err, "open the folder with adapters.LoadAdapterHub")
}

// Names of AdapterHub's first files, and files of a model without its head, are read too; a
// head can be left out.
func TestAdapterHubOldFiles(t *testing.T) {
	g := openHubGolden(t, hubFixture("bert-pfeiffer"))
	want, err := LoadAdapterHub(g.base(t), g.Dir)
	require.NoError(t, err)
	for name, rename := range map[string]func(string) string{
		"old names": func(s string) string {
			return strings.Replace(s, "output.adapters.", "output.layer_text_task_adapters.", 1)
		},
		"no prefix": func(s string) string { return strings.TrimPrefix(s, "bert.") },
	} {
		t.Run(name, func(t *testing.T) {
			dir := rewriteHub(t, hubCopy(t, "bert-pfeiffer", nil), hubWeightsFile, func(l []safetensors.Tensor) []safetensors.Tensor {
				for i := range l {
					renamed := rename(l[i].Name)
					require.NotEqual(t, renamed, l[i].Name)
					l[i].Name = renamed
				}
				return l
			})
			got, err := LoadAdapterHub(want.Base(), dir)
			require.NoError(t, err)
			require.Equal(t, hostValues(t, want), hostValues(t, got))
		})
	}
	bare, err := LoadAdapterHub(want.Base(), g.Dir, HubOptions{WithoutHead: true, Name: "bare"})
	require.NoError(t, err)
	values, err := bare.TensorValues("bare")
	require.NoError(t, err)
	require.NotEqual(t, hostValues(t, want)["classifier.weight"], values["classifier.weight"])
	require.Equal(t, hostValues(t, want)["bert.encoder.layer.1.output.adapter_up.weight"], values["bert.encoder.layer.1.output.adapter_up.weight"])
}

// A head that was trained with the adapter of a language model becomes part of it; one that is
// the base's own does not.
func TestAdapterHubLanguageModelHead(t *testing.T) {
	g := openHubGolden(t, hubFixture("llama-pfeiffer"))
	base := g.base(t)
	const head = "lm_head.weight"
	var p site.Parameter
	for _, p = range base.Parameters() {
		if p.Name == head {
			break
		}
	}
	values, err := peft.BaseValues(base, p)
	require.NoError(t, err)
	alone, err := LoadAdapterHub(base, g.Dir)
	require.NoError(t, err)
	want := g.evaluate(t, alone).Logits
	for _, factor := range []float32{1, 2} {
		dir := hubCopy(t, "llama-pfeiffer", nil)
		require.NoError(t, os.WriteFile(filepath.Join(dir, hubHeadConfig), []byte(`{"name": null, "config": null, "model_class": "LlamaForCausalLM"}`), 0o600))
		scaled := make([]float32, len(values))
		for i, v := range values {
			scaled[i] = factor * v
		}
		data := make([]byte, 4*len(scaled))
		require.NoError(t, safetensors.EncodeFloat32s(data, scaled, safetensors.F32))
		require.NoError(t, safetensors.Write(filepath.Join(dir, hubHeadWeights), nil, []safetensors.Tensor{{Name: head, DType: safetensors.F32, Shape: p.Shape, Bytes: data}}))
		pm, err := LoadAdapterHub(base, dir)
		require.NoError(t, err)
		got := g.evaluate(t, pm).Logits
		for i := range got {
			got[i] /= factor
		}
		basetest.RequireClose(t, want, got, 1e-5, "logits")
		config, err := pm.Config("task")
		require.NoError(t, err)
		require.Equal(t, factor == 2, len(config.(BottleneckConfig).ModulesToSave) == 1)
	}
}
