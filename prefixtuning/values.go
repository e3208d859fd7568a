package prefixtuning

import (
	"encoding/json"
	"fmt"
)

// Size is a number that is 0 where the base decides it; then null in JSON.
type Size int

// MarshalJSON writes a number or null.
func (s Size) MarshalJSON() ([]byte, error) {
	if s == 0 {
		return []byte("null"), nil
	}
	return json.Marshal(int(s))
}

// UnmarshalJSON reads an integer or null.
func (s *Size) UnmarshalJSON(data []byte) error {
	var n *int
	if err := json.Unmarshal(data, &n); err != nil {
		return fmt.Errorf("want an integer or null, got %s", data)
	}
	*s = 0
	if n != nil {
		*s = Size(*n)
	}
	return nil
}

// Text is a string that is null in JSON where it is empty.
type Text string

// MarshalJSON writes a string or null.
func (s Text) MarshalJSON() ([]byte, error) {
	if s == "" {
		return []byte("null"), nil
	}
	return json.Marshal(string(s))
}

// UnmarshalJSON reads a string or null.
func (s *Text) UnmarshalJSON(data []byte) error {
	var text *string
	if err := json.Unmarshal(data, &text); err != nil {
		return fmt.Errorf("want a string or null, got %s", data)
	}
	*s = ""
	if text != nil {
		*s = Text(*text)
	}
	return nil
}
