// Package tokenizer turns text into token ids and back, as Hugging Face's
// tokenizers library does, from the tokenizer.json of a model folder.
//
// # Kinds
//
// Byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM), SentencePiece-style BPE with
// byte fallback (Llama 2, Mistral, Gemma), WordPiece (BERT), Unigram (T5,
// XLM-R) and WordLevel, with the normalizers, pre-tokenizers, post-processors
// and decoders that go with them. docs/tokenizer.md lists every supported part
// of the file; a part that is not supported is an error when the file is read,
// never a silently different id.
//
// # Text that is not UTF-8
//
// Invalid bytes are replaced by U+FFFD first, one for each maximal ill-formed
// sequence (Unicode 15, section 3.9, table 3-8), as Python's
// bytes.decode(errors="replace") does.
//
// # Chat templates
//
// [Tokenizer.ApplyChatTemplate] renders the model's Jinja template as
// transformers' apply_chat_template does.
//
// # Truncation and padding
//
// The truncation and padding sections of tokenizer.json are ignored: they
// describe how the tokenizer was used last, and collating batches is the data
// loader's work.
//
// A [Tokenizer] does not change once loaded and is safe for concurrent use.
package tokenizer
