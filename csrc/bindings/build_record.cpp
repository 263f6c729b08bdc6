// What csrc/build_extension.py says of this build, as JSON. A file of its own: it changes with every source.
namespace overlap_recompute {

const char* build_record() { return ORC_BUILD_RECORD; }

}  // namespace overlap_recompute
