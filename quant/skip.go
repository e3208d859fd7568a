package quant

import (
	"fmt"
	"slices"
	"strings"

	"github.com/gopeft/gopeft/internal/suggest"
)

// Check reports settings of a scheme that make no sense for a model with these linear
// layers, by their paths: what Validate reports, and names in Skip that fit none of them.
func Check(s Scheme, linear []string) error {
	if err := s.Validate(); err != nil {
		return err
	}
	for _, skip := range s.Config().SkipModules {
		if slices.ContainsFunc(linear, func(path string) bool { return endsIn(path, []string{skip}) }) {
			continue
		}
		var names []string
		for _, path := range linear {
			names = append(names, path, path[strings.LastIndexByte(path, '.')+1:])
		}
		slices.Sort(names)
		return fmt.Errorf("quantization: module to skip %q is no linear layer%s", skip, suggest.DidYouMean(skip, slices.Compact(names)))
	}
	return nil
}
