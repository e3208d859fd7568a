package suggest

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{
		{"", "", 0}, {"", "abc", 3}, {"abc", "abc", 0}, {"q_porj", "q_proj", 1}, {"kitten", "sitting", 3},
		{"ca", "abc", 3}, {"größe", "grösse", 2}, {"ab", "ba", 1},
	} {
		require.Equal(t, c.want, Distance(c.a, c.b), "%q %q", c.a, c.b)
		require.Equal(t, c.want, Distance(c.b, c.a), "%q %q", c.b, c.a)
	}
}

func TestNearest(t *testing.T) {
	known := []string{"q_proj", "k_proj", "v_proj", "o_proj", "down_proj", "q_proj"}
	require.Equal(t, []string{"q_proj"}, Nearest("q_porj", known))
	require.Equal(t, []string{"q_proj", "k_proj", "v_proj"}, Nearest("x_proj", known))
	require.Empty(t, Nearest("query", known))
	require.Equal(t, []string{"v_proj"}, Nearest("V_Proj", known))
	require.Equal(t, `; did you mean "down_proj"?`, DidYouMean("downproj", known))
	require.Equal(t, `; did you mean "q_proj", "k_proj" or "v_proj"?`, DidYouMean("x_proj", known))
	require.Empty(t, DidYouMean("c_attn", known))
}
