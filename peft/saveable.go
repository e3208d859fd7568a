package peft

// unsaveable is a configuration whose adapters have no file format.
type unsaveable interface{ unsaveable() error }

// Saveable returns nil if adapters of this configuration have a file in peft's
// format, else the reason why [PeftModel.SavePretrained] refuses them.
func Saveable(c Config) error {
	if u, ok := c.(unsaveable); ok {
		return u.unsaveable()
	}
	return nil
}
