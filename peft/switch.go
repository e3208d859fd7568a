package peft

import "encoding/json"

// Switch is an option that is on unless it is turned off.
type Switch string

const (
	// On is the default.
	On Switch = ""
	// Off turns the option off.
	Off Switch = "false"
)

// MarshalJSON writes true or false.
func (s Switch) MarshalJSON() ([]byte, error) { return json.Marshal(s != Off) }

// UnmarshalJSON reads null, true or false.
func (s *Switch) UnmarshalJSON(data []byte) error {
	on := true
	if err := json.Unmarshal(data, &on); err != nil {
		return err
	}
	*s = On
	if !on {
		*s = Off
	}
	return nil
}
