// The interface between osqueryd and its extensions: the methods and fields that osquery 5 sends and takes. docs/architecture.md,
// "Thrift", says what is made of it. Regenerate osquery.rs with src/extension/regenerate.

namespace rs osquery

typedef map<string, string> ExtensionPluginRequest
typedef list<map<string, string>> ExtensionPluginResponse

struct InternalOptionInfo {
  1: string value,
  2: string default_value,
  3: string type,
}

struct InternalExtensionInfo {
  1: string name,
  2: string version,
  3: string sdk_version,
  4: string min_sdk_version,
}

struct ExtensionStatus {
  1: i32 code,
  2: string message,
  3: i64 uuid,
}

struct ExtensionResponse {
  1: ExtensionStatus status,
  2: ExtensionPluginResponse response,
}

exception ExtensionException {
  1: i32 code,
  2: string message,
  3: i64 uuid,
}

service Extension {
  ExtensionStatus ping(),
  ExtensionResponse call(1: string registry, 2: string item, 3: ExtensionPluginRequest request),
  void shutdown(),
}

service ExtensionManager extends Extension {
  map<i64, InternalExtensionInfo> extensions(),
  map<string, InternalOptionInfo> options(),
  ExtensionStatus registerExtension(
    1: InternalExtensionInfo info,
    2: map<string, map<string, ExtensionPluginResponse>> registry),
  ExtensionStatus deregisterExtension(1: i64 uuid),
  ExtensionResponse query(1: string sql),
  ExtensionResponse getQueryColumns(1: string sql),
}
