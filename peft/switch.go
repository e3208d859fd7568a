package peft

import (
	"bytes"
	"encoding/json"
)

// DefaultOn is an option of peft's that is on unless a configuration says [Off]. In JSON it
// is true or false.
type DefaultOn bool

// Off turns a [DefaultOn] off.
const Off DefaultOn = true

// On reports whether the option is on.
func (d DefaultOn) On() bool { return d != Off }

// MarshalJSON writes true or false.
func (d DefaultOn) MarshalJSON() ([]byte, error) { return json.Marshal(d.On()) }

// UnmarshalJSON reads true, false or null, which is on.
func (d *DefaultOn) UnmarshalJSON(data []byte) error {
	if bytes.Equal(data, []byte("null")) {
		*d = !Off
		return nil
	}
	var on bool
	if err := json.Unmarshal(data, &on); err != nil {
		return err
	}
	*d = DefaultOn(!on)
	return nil
}
