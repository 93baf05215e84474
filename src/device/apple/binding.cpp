// Which surface goes to which symbol of a loaded program.
#include "device/apple/binding.h"

#include <algorithm>
#include <numeric>
#include <optional>

namespace mlx_ane::apple {

namespace {

std::vector<Symbol> in_ascii_order(const std::vector<Port>& ports) {
  std::vector<size_t> order(ports.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return ports[a].name < ports[b].name;
  });
  std::vector<Symbol> symbols;
  for (size_t i = 0; i < order.size(); ++i) {
    symbols.push_back({order[i], static_cast<long long>(i)});
  }
  return symbols;
}

/// The symbols of procedure 0 in its own order; all of them where the model
/// does not list procedures.
std::vector<size_t> symbol_order(
    id procedure, const char* key, size_t symbols) {
  auto indices = lookup(procedure, key);
  std::vector<size_t> order;
  for (size_t i = 0; i < count(indices); ++i) {
    order.push_back(
        send<unsigned long long>(element(indices, i), "unsignedLongLongValue"));
  }
  if (order.empty()) {
    order.resize(symbols);
    std::iota(order.begin(), order.end(), 0);
  }
  return order;
}

/// nullopt unless every port is named exactly once.
std::optional<std::vector<Symbol>> by_name(
    const std::vector<Port>& ports,
    id symbols,
    const std::vector<size_t>& order) {
  if (order.size() != ports.size()) {
    return std::nullopt;
  }
  std::vector<Symbol> bound;
  std::vector<bool> taken(ports.size());
  for (auto index : order) {
    if (index >= count(symbols)) {
      return std::nullopt;
    }
    auto name = to_text(element(symbols, index));
    name = name.substr(0, name.find('@'));  // Outputs read "name@output".
    auto port = std::find_if(ports.begin(), ports.end(), [&](auto& candidate) {
      return candidate.name == name;
    });
    auto place = static_cast<size_t>(port - ports.begin());
    if (port == ports.end() || taken[place]) {
      return std::nullopt;
    }
    taken[place] = true;
    bound.push_back({place, static_cast<long long>(index)});
  }
  return bound;
}

}  // namespace

Binding bind_ports(id model, const Source& source) {
  auto inner = responds(model, "model") ? send(model, "model") : nullptr;
  auto holder = responds(inner, "modelAttributes") ? inner : model;
  auto attributes = responds(holder, "modelAttributes")
                        ? send(holder, "modelAttributes")
                        : nullptr;
  auto description = lookup(attributes, "ANEFModelDescription");
  // Reports place the procedures in either dictionary.
  auto procedures = lookup(description, "ANEFModelProcedures");
  if (procedures == nullptr) {
    procedures = lookup(attributes, "ANEFModelProcedures");
  }
  auto procedure = count(procedures) > 0 ? element(procedures, 0) : nullptr;
  auto bind = [&](const std::vector<Port>& ports,
                  const char* symbols_key,
                  const char* indices_key) {
    auto symbols = lookup(description, symbols_key);
    return by_name(
        ports, symbols, symbol_order(procedure, indices_key, count(symbols)));
  };
  auto inputs = bind(
      source.inputs,
      "kANEFModelInputSymbolsArrayKey",
      "ANEFModelInputSymbolIndexArray");
  auto outputs = bind(
      source.outputs,
      "kANEFModelOutputSymbolsArrayKey",
      "ANEFModelOutputSymbolIndexArray");
  if (inputs && outputs) {
    return {*inputs, *outputs, true};
  }
  return {in_ascii_order(source.inputs), in_ascii_order(source.outputs), false};
}

}  // namespace mlx_ane::apple
