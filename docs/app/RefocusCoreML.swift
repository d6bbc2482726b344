// Not compiled here: no Xcode on the build machine. Uses Core ML's MLModel only; Xcode compiles the
// .mlpackage to .mlmodelc when it is added to the app, `MLModel.compileModel(at:)` one of a bundle.
//
// manifest.json of the run says: photo float32 [1, 3, 320, 448] in [-1, 1],
// position float32 [1, 9] in [0, 1] (one-hot, or zeros where it is unknown); outputs, in order:
// stack float32 [9, 3, 320, 448] in [-1, 1], sharp float32 [1, 3, 320, 448] in [-1, 1],
// detail float32 [1, 10, 320, 448] in [-1, 1], dioptres float32 [1, 1, 80, 112] in [0, 1],
// positions float32 [1, 9] in [0, 1]. `functions` of the artifact lists what to call for photos of
// other sizes: configuration.functionName = name, from iOS 18.

import CoreML

final class Refocus {
  private let model: MLModel

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
      stackOf: { model, photo, position in
        let made = try model.analyse(photo: photo, position: position)
        guard let stack = made.featureValue(for: "stack")?.multiArrayValue else { return [] }
        return (0..<stack.count).map { stack[$0].floatValue }
      })
  }

  init(compiled: URL, units: MLComputeUnits = .all) throws {  // coreml/student-int8.mlpackage, compiled
    let configuration = MLModelConfiguration()
    configuration.computeUnits = units
    model = try MLModel(contentsOf: compiled, configuration: configuration)
  }

  /// photo: 3 * 320 * 448 values, channels first, (pixel / 127.5 - 1); position: 0 near to 8 far,
  /// nil where it is unknown. The outputs by name: featureValue(for: "stack") has nine such pictures.
  func analyse(photo: [Float], position: Int?) throws -> MLFeatureProvider {
    let picture = try MLMultiArray(shape: [1, 3, 320, 448], dataType: .float32)
    for (index, value) in photo.enumerated() { picture[index] = NSNumber(value: value) }
    let oneHot = try MLMultiArray(shape: [1, 9], dataType: .float32)
    for index in 0..<9 { oneHot[index] = index == position ? 1 : 0 }
    let inputs = try MLDictionaryFeatureProvider(dictionary: ["photo": picture, "position": oneHot])
    return try model.prediction(from: inputs)
  }
}
