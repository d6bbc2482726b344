// Not compiled here: no Android SDK on the build machine. Calls follow ExecuTorch's Android guide,
// https://docs.pytorch.org/executorch/stable/using-executorch-android.html (AAR executorch-android).
//
// manifest.json of the run says: photo float32 [1, 3, 320, 448] in [-1, 1],
// position float32 [1, 9] in [0, 1] (one-hot, or zeros where it is unknown); outputs, in order:
// stack float32 [9, 3, 320, 448] in [-1, 1], sharp float32 [1, 3, 320, 448] in [-1, 1],
// detail float32 [1, 10, 320, 448] in [-1, 1], dioptres float32 [1, 1, 80, 112] in [0, 1],
// positions float32 [1, 9] in [0, 1]. `functions` of the artifact lists what to call for photos of
// other sizes: module.execute(name, …) in place of forward.

import java.io.File
import org.pytorch.executorch.EValue
import org.pytorch.executorch.Module
import org.pytorch.executorch.Tensor

class Refocus(ptePath: String) {
    private val module = Module.load(ptePath) // executorch/student-int8.pte, copied out of the assets

    /**
     * photo: 3 * 320 * 448 values, channels first, (pixel / 127.5 - 1); position: 0 near to 8 far,
     * null where it is unknown. Returns all outputs: nine such pictures first.
     */
    fun analyse(photo: FloatArray, position: Int?): List<FloatArray> {
        val oneHot = FloatArray(9).also { if (position != null) it[position] = 1f }
        val outputs = module.forward(
            EValue.from(Tensor.fromBlob(photo, longArrayOf(1, 3, 320, 448))),
            EValue.from(Tensor.fromBlob(oneHot, longArrayOf(1, 9))),
        )
        return outputs.map { it.toTensor().dataAsFloatArray } // stack, sharp, detail, dioptres, positions
    }

    companion object {
        /** Of a golden bundle, the first .pte that is right on this phone (Canary.kt). */
        fun open(bundle: File): Refocus? = Canary(bundle).firstThatWorks(
            "executorch", { file, _ -> Refocus(file.path) }, { model, photo, at -> model.analyse(photo, at)[0] },
        )
    }
}
