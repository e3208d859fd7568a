package peft

import (
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/gopeft/gopeft/site"
)

// LayerStatus is one module of the base that some adapter of the model targets.
type LayerStatus struct {
	Module site.Module
	// Adapters are those that target it, in the model's order.
	Adapters []LayerAdapter
}

// LayerAdapter is an adapter at one module.
type LayerAdapter struct {
	Name string
	// Method is the peft_type, "LORA".
	Method string
	// Settings are those of the adapter at this module: its rank, say.
	Settings []Setting
	// Active and Trained say what it is in the view that was asked.
	Active, Trained bool
}

// LayerStatuses are the adapted modules of a model in the base's order.
type LayerStatuses []LayerStatus

// ModelStatus is what a model is made of, and what a view of it selects.
type ModelStatus struct {
	// BaseModelType and BaseModelNameOrPath are the base's; see [site.Base].
	BaseModelType, BaseModelNameOrPath string
	// Adapters are all of the model, in the order they were added.
	Adapters []AdapterStatus
	// Active are the names of those that the view selects, and Trained of those that it trains.
	Active, Trained []string
	// Layers is the number of modules that some adapter targets.
	Layers int
	// Count is [PeftModel.TrainableParameters].
	Count Count
}

// AdapterStatus is one adapter of a model.
type AdapterStatus struct {
	Name string
	// Method is the peft_type, "LORA".
	Method string
	// Layers is the number of modules that it targets, Parameters that of its trainable values.
	Layers     int
	Parameters int64
	// MaxRank, see [Options].
	MaxRank int
	// Active and Trained say what it is in the view that was asked.
	Active, Trained bool
}

// named is an adapter under the name by which the view knows it.
type named struct {
	name string
	namedAdapter
}

// all returns the adapters of the model, and what the view keeps of those deleted.
func (pm *PeftModel) all() []named {
	pm.set.mu.RLock()
	defer pm.set.mu.RUnlock()
	var out []named
	var seen []*namedAdapter
	for _, name := range pm.set.order {
		na := pm.set.adapters[name]
		seen = append(seen, na)
		if i := slices.Index(pm.held, na); i >= 0 {
			name = pm.active[i]
		}
		out = append(out, named{name, *na})
	}
	for i, na := range pm.held {
		if !slices.Contains(seen, na) {
			out = append(out, named{pm.active[i], *na})
		}
	}
	return out
}

// LayerStatus lists the modules that the model's adapters target, and which.
func (pm *PeftModel) LayerStatus() LayerStatuses {
	at := map[string][]LayerAdapter{}
	trained := pm.Trained()
	for _, na := range pm.all() {
		describer, _ := na.parts[0].(Describer)
		for _, m := range na.adapter.Targets() {
			l := LayerAdapter{Name: na.name, Method: na.config.PeftType(), Active: slices.Contains(pm.active, na.name), Trained: slices.Contains(trained, na.name)}
			if describer != nil && slices.ContainsFunc(na.parts[0].Targets(), func(t site.Module) bool { return t.Path == m.Path }) {
				l.Settings = describer.Describe(m)
			}
			at[m.Path] = append(at[m.Path], l)
		}
	}
	var out LayerStatuses
	for _, m := range pm.set.base.Modules() {
		if adapters, ok := at[m.Path]; ok {
			out = append(out, LayerStatus{m, adapters})
		}
	}
	return out
}

// ModelStatus sums up the model and the view.
func (pm *PeftModel) ModelStatus() ModelStatus {
	base := pm.set.base
	s := ModelStatus{BaseModelType: base.ModelType(), BaseModelNameOrPath: base.NameOrPath(), Active: pm.Active(), Trained: pm.Trained(), Count: pm.TrainableParameters()}
	paths := map[string]bool{}
	for _, na := range pm.all() {
		targets := na.adapter.Targets()
		for _, m := range targets {
			paths[m.Path] = true
		}
		s.Adapters = append(s.Adapters, AdapterStatus{
			Name: na.name, Method: na.config.PeftType(), Layers: len(targets), Parameters: na.trainable(), MaxRank: na.maxRank,
			Active: slices.Contains(s.Active, na.name), Trained: slices.Contains(s.Trained, na.name),
		})
	}
	s.Layers = len(paths)
	return s
}

// String is a table with one line for each adapter at each module.
func (all LayerStatuses) String() string {
	return table(func(w *tabwriter.Writer) {
		fmt.Fprintln(w, "module\tkind\tadapter\tmethod\tstate\tsettings")
		for _, l := range all {
			for _, a := range l.Adapters {
				var settings []string
				for _, s := range a.Settings {
					settings = append(settings, s.Name+" "+s.Value)
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", l.Module.Path, l.Module.Kind, a.Name, a.Method, state(a.Active, a.Trained), strings.Join(settings, ", "))
			}
		}
	})
}

// String is a table with one line for each adapter, and the line of [Count.String].
func (s ModelStatus) String() string {
	head := fmt.Sprintf("base %s", s.BaseModelType)
	if s.BaseModelNameOrPath != "" {
		head += " from " + s.BaseModelNameOrPath
	}
	return fmt.Sprintf("%s, %d adapted modules\n", head, s.Layers) + table(func(w *tabwriter.Writer) {
		fmt.Fprintln(w, "adapter\tmethod\tstate\tmodules\tparameters")
		for _, a := range s.Adapters {
			fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\n", a.Name, a.Method, state(a.Active, a.Trained), a.Layers, thousands(a.Parameters))
		}
	}) + "\n" + s.Count.String()
}

// table lays columns out, without blanks at the ends of lines.
func table(fill func(w *tabwriter.Writer)) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fill(w)
	w.Flush() // to a strings.Builder, which cannot fail
	lines := strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
	for i, line := range lines {
		lines[i] = strings.TrimRight(line, " ")
	}
	return strings.Join(lines, "\n")
}

func state(active, trained bool) string {
	switch {
	case trained:
		return "trained"
	case active:
		return "active"
	}
	return "idle"
}
