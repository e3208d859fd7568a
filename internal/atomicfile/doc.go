// Package atomicfile replaces a file or a whole folder so that a reader, and
// whoever starts after a crash, finds the old content or the new one and
// never a half.
//
// The new content is written beside the target under a temporary name
// (NAME.part-<16 hex digits>), synced, and renamed; then the parent folder is
// synced, without which the rename itself can be lost in a power cut.
//
// # Folders
//
// A folder that exists is exchanged with the new one in a single system call
// where there is one (renameat2 on Linux, renamex_np on macOS). Elsewhere the
// old one is renamed to NAME.old-<16 hex digits>, the new one takes its
// place, and the old one is removed; a crash between the two renames leaves
// no folder under NAME, and [Recover] (which [WriteDir] also calls) brings
// the old one back.
//
// # Leftovers
//
// A crash can leave NAME.part-* or NAME.old-* behind. [Recover] removes them.
//
// google/renameio is not used: it does not build on Windows, does not sync
// the folder, knows no folders, and cannot be stopped between two steps,
// which is what the tests here do.
package atomicfile
