package peft

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/site"
)

// What Exactly returns selects what it was made for: few modules or many, also where a path
// ends that of another module.
func TestExactly(t *testing.T) {
	var all []site.Module
	for i := range 30 {
		for _, name := range []string{"q", "k", "mlp.up"} {
			all = append(all, site.Module{Path: fmt.Sprintf("layers.%d.%s", i, name)})
		}
	}
	all = append(all, site.Module{Path: "q"}, site.Module{Path: "0.q"}, site.Module{Path: "head"})
	is := func(test func(path string) bool) (selected []site.Module) {
		for _, m := range all {
			if test(m.Path) {
				selected = append(selected, m)
			}
		}
		return selected
	}
	for name, c := range map[string]struct {
		selected []site.Module
		want     string
	}{
		"many":      {is(func(path string) bool { return path[len(path)-1] == 'p' }), `["up"]`},
		"few":       {all[:2], `["layers.0.k","layers.0.q"]`},
		"the end":   {is(func(path string) bool { return path == "q" }), `"q"`},
		"two ends":  {is(func(path string) bool { return path == "q" || path == "0.q" || path == "head" }), `"q|0\\.q|head"`},
		"among all": {append(is(func(path string) bool { return path[len(path)-1] == 'p' }), is(func(path string) bool { return path == "q" })...), ""},
	} {
		targets := Exactly(c.selected, all)
		if c.want != "" {
			require.Equal(t, c.want, targets.String(), name)
		}
		got, _, err := Selection{TargetModules: targets}.Match(all, NoneUnused)
		require.NoError(t, err, name)
		require.ElementsMatch(t, c.selected, got, name)
	}
}
