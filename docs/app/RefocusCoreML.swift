// Not compiled here: no Xcode on the build machine. Uses Core ML's MLModel only; Xcode compiles the
// .mlpackage to .mlmodelc when it is added to the app, `MLModel.compileModel(at:)` one of a bundle.
//
// manifest.json of the run says: photo float32 [1, 3, 320, 448] in [-1, 1],
// position float32 [1, 9] in [0, 1] (one-hot, or zeros where it is unknown); outputs, in order:
// stack float32 [9, 3, 320, 448] in [-1, 1], sharp float32 [1, 3, 320, 448] in [-1, 1],
// detail float32 [1, 10, 320, 448] in [-1, 1], dioptres float32 [1, 1, 80, 112] in [0, 1],
// positions float32 [1, 9] in [0, 1]. `functions` of the artifact lists a function for every size, of
// packages for iOS 18; each is a model of its own, and all share the weights on disk.

import CoreML

final class Refocus {
  static let usual = Canary.Method(name: "main", size: [320, 448])
  private let compiled: URL, units: MLComputeUnits
  private var models: [String: MLModel] = [:]

  /// Of a golden bundle, the first package and compute unit that are right here (Canary.swift).
  static func open(bundle: URL) throws -> Refocus? {
    let units: [String: MLComputeUnits] = [
      "all": .all, "cpuAndGPU": .cpuAndGPU, "cpuOnly": .cpuOnly,
    ]
    return try Canary.read(bundle: bundle).firstThatWorks(
      in: bundle, target: "coreml",
      open: { file, next in
        try Refocus(compiled: MLModel.compileModel(at: file), units: units[next.unit] ?? .all)
      },
      stackOf: { model, photo, position, method in
        let made = try model.analyse(photo: photo, position: position, method: method ?? usual)
        guard let stack = made.featureValue(for: "stack")?.multiArrayValue else { return [] }
        return (0..<stack.count).map { stack[$0].floatValue }
      })
  }

  init(compiled: URL, units: MLComputeUnits = .all) throws {  // coreml/student-int8.mlpackage, compiled
    self.compiled = compiled
    self.units = units
    _ = try model(of: Refocus.usual)
  }

  private func model(of method: Canary.Method) throws -> MLModel {
    if let held = models[method.name] { return held }
    let configuration = MLModelConfiguration()
    configuration.computeUnits = units
    if method.name != Refocus.usual.name, #available(iOS 18, macOS 15, *) {
      configuration.functionName = method.name
    }
    let loaded = try MLModel(contentsOf: compiled, configuration: configuration)
    models[method.name] = loaded
    return loaded
  }

  /// photo: 3 * height * width values of the function's size, channels first, (pixel / 127.5 - 1);
  /// position: 0 near to 8 far, nil where it is unknown. The outputs by name: featureValue(for:
  /// "stack") has nine such pictures.
  func analyse(
    photo: [Float], position: Int?, method: Canary.Method = Refocus.usual
  ) throws -> MLFeatureProvider {
    let shape = ([1, 3] + method.size).map { NSNumber(value: $0) }
    let picture = try MLMultiArray(shape: shape, dataType: .float32)
    for (index, value) in photo.enumerated() { picture[index] = NSNumber(value: value) }
    let oneHot = try MLMultiArray(shape: [1, 9], dataType: .float32)
    for index in 0..<9 { oneHot[index] = index == position ? 1 : 0 }
    let inputs = try MLDictionaryFeatureProvider(dictionary: ["photo": picture, "position": oneHot])
    return try model(of: method).prediction(from: inputs)
  }
}
