// Not compiled here: no Xcode on the build machine. Uses Core ML's MLModel only; Xcode compiles the
// .mlpackage to .mlmodelc when it is added to the app.
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

  init(compiled: URL) throws {  // coreml/student-int8.mlpackage, compiled
    let configuration = MLModelConfiguration()
    configuration.computeUnits = .all
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
